"""The driver's side of workers elsewhere: trials of the search go into a shared folder, results come from there.

What else there is to do, final runs among it, this process does itself. Workers are `loratune worker`.
"""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from transformers import PreTrainedTokenizerBase

from loratune.data.prepare import PreparedData
from loratune.data.stored import read_rows, write_rows
from loratune.errors import DataError
from loratune.runners.engines import Host, LocalEngines
from loratune.runners.leases import BEAT, FOLDER, SILENCE, LeaseFolder, Offer, Watch
from loratune.runners.local import LocalRunner
from loratune.runners.options import DEFAULT, RunnerOptions
from loratune.runners.runner import Done, Job, More, TrialDone, TrialJob
from loratune.runners.spec import Built, EngineSpec, build_on
from loratune.values import Trial, TrialResult
from loratune.values.events import Note

_LOOK = 0.5
"""Seconds between two looks into the folder."""
_ALONE = 60.0
"""Seconds without a worker after which the user is told, once."""


@dataclass(kw_only=True, eq=False)
class SharedRunner:
    """A `Runner` whose trials of the search are trained by the workers that take them from the folder."""

    place: LeaseFolder
    here: LocalRunner
    """Does everything else; its clock and its stop count for all."""
    options: RunnerOptions
    """Options with a planner."""
    recorded: set[str] = field(default_factory=set)
    """Keys of results that the study has: what comes of these again is late, and forgotten."""
    silence: float = SILENCE
    _watch: Watch = field(default_factory=Watch, init=False)
    _numbers: int = field(default=0, init=False)
    _beaten: float = field(default=-BEAT, init=False)
    _attended: float = field(default_factory=monotonic, init=False)
    """When a worker was last seen."""
    _offers: dict[str, Offer] = field(default_factory=dict, init=False)
    """Offers without a result yet, by key."""

    @property
    def late(self) -> bool:
        return self.here.late

    def run(self, jobs: Sequence[Job], more: More | None = None) -> Generator[Done, None, None]:
        """The trials of the search first, by workers; then the rest, here."""
        trials = [job.trial for job in jobs if isinstance(job, TrialJob)]
        if trials:
            yield from self._search(trials, more)
        with closing(self.here.run([job for job in jobs if not isinstance(job, TrialJob)])) as rest:
            yield from rest

    def _search(self, trials: Sequence[Trial], more: More | None) -> Generator[Done, None, None]:
        asked = list(trials)
        open_keys = {trial.key for trial in trials}
        ended: list[TrialResult] = []
        self._offer(trials, asked)
        fresh = True
        while open_keys:
            self._beat()
            if self.late:
                self.place.halt()
                if not self.place.running():
                    return
            for done in self._found(open_keys):
                open_keys.remove(done.result.asked.key)
                self.recorded.add(done.result.asked.key)
                ended.append(done.result)
                fresh = True
                yield done
            self._requeue()
            # a result is there before its lease goes: what is handed over already runs no more
            running = open_keys & {lease.key for lease in self.place.running()}
            idle = fresh and running and not self.place.waiting() and not self.late
            if more is not None and idle:
                fresh = False
                further = more(ended, tuple(trial for trial in asked if trial.key in open_keys))
                asked.extend(further)
                open_keys.update(trial.key for trial in further)
                self._offer(further, asked)
            elif open_keys:
                sleep(_LOOK)

    def _offer(self, trials: Sequence[Trial], everybody: Sequence[Trial]) -> None:
        """Offer the trials in the order of a plan, but for those that run already or are done."""
        if not trials:
            return
        planner = self.options.planner
        assert planner is not None, "trials of a search need a planner"
        plan = planner.plan(trials)
        room = planner.room([trial.hyper_parameters for trial in everybody])
        there = {lease.key for lease in self.place.running()} | {key for key, _ in self.place.done()}
        for number in [number for part in plan.parts for number in part.order]:
            trial = trials[number]
            memory = planner.load(trial).memory
            self._offers[trial.key] = Offer(trial=trial, memory=memory, room=float(room), slots=plan.slots)
            if trial.key not in there:
                self._put(trial.key)

    def _put(self, key: str) -> None:
        self._numbers += 1
        self.place.offer(self._numbers, self._offers[key])

    def _found(self, wanted: set[str]) -> Generator[TrialDone, None, None]:
        """Results that have arrived, each once; late ones are ignored, damaged ones are trained again."""
        for key, worker in self.place.done():
            if key in self.recorded:
                self.place.forget(key, worker)
            elif key in wanted:
                try:
                    result, adapter = self.place.result(key, worker)
                except ValueError as error:
                    self.options.tell(
                        Note(text=f"A result of {worker} is damaged ({error}); its trial starts again.")
                    )
                    self.place.forget(key, worker)
                    self._put(key)
                    continue
                del self._offers[key]
                self.place.withdraw(key)
                kept = self.options.take(result, adapter)
                yield TrialDone(job=TrialJob(trial=result.asked), result=result, adapter=kept)
                self.place.forget(key, worker)

    def _requeue(self) -> None:
        """What silent workers have taken waits again. With none at all the user is told, once."""
        live = set()
        for worker in {*self.place.workers(), *(lease.worker for lease in self.place.running())}:
            if self._watch.silent(worker, self.place.stamp_of_worker(worker)) < self.silence:
                live.add(worker)
                continue
            lost = sum(lease.worker == worker for lease in self.place.running())
            self.place.leave(worker)
            if lost:
                silent = f"The worker {worker} has not been heard of for {self.silence:.0f} s"
                self.options.tell(Note(text=f"{silent}; its {lost} unfinished trials start again elsewhere."))
        if live:
            self._attended = monotonic()
        elif monotonic() - self._attended > _ALONE:
            self._attended = inf
            folder = self.place.folder.parent
            self.options.tell(
                Note(text=f"Trials wait for a worker; start one with: loratune worker {folder}")
            )

    def _beat(self) -> None:
        if monotonic() - self._beaten >= BEAT:
            self._beaten = monotonic()
            self.place.beat_driver()


class SharedEngines(LocalEngines):
    """`Engines` in this process, but for the trials of a search: workers elsewhere train them."""

    def __init__(self, built: Built, directory: Path) -> None:
        super().__init__(built)
        self._directory = directory
        self.place = LeaseFolder(directory / FOLDER)

    def runner(self, spec: EngineSpec, options: RunnerOptions = DEFAULT) -> Any:
        here = super().runner(spec, replace(options, planner=None, largest=None, finalists=None))
        if options.planner is None:
            return here
        self._begin(spec)
        return SharedRunner(
            place=self.place,
            here=here,
            options=options,
            silence=SILENCE,
        )

    def _begin(self, spec: EngineSpec) -> None:
        """Rows and specification for workers, which may see them under other paths and on other devices."""
        rows, data = self.place.folder / "rows", self.built.data
        if not _holds(rows, data.fingerprint):
            shutil.rmtree(rows, ignore_errors=True)
            self.place.folder.mkdir(parents=True, exist_ok=True)
            write_rows(data, rows)
        model = Path(spec.model)
        sealed = replace(
            spec.sealed(data),
            model=str(model.resolve()) if model.exists() else spec.model,
            device="auto",
            device_memory=None,
        )
        self.place.begin(sealed)


def _holds(rows: Path, fingerprint: str) -> bool:
    try:
        return read_rows(rows).fingerprint == fingerprint
    except DataError:
        return False


def with_workers(directory: Path) -> Host:
    """A `Host` for a run in this directory: an engine in this process, and those of workers that see the directory.

    When the run is complete the workers are told; otherwise they continue with what waits.
    """

    @contextmanager
    def host(
        spec: EngineSpec, data: PreparedData, tokenizer: PreTrainedTokenizerBase
    ) -> Iterator[SharedEngines]:
        engines = SharedEngines(build_on(spec, data, tokenizer), directory)
        yield engines
        if engines.place.folder.exists():
            engines.place.close()

    return host
