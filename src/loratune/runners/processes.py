"""Jobs done by processes of this machine, each with an engine of its own: one for each device, or several on a CPU.

The plan says which trials are whose; a device that runs out of work takes trials that wait for another.
Results are recorded here. A process that dies is replaced, and its unfinished work starts again.
"""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic
from typing import cast

import torch
from transformers import PreTrainedTokenizerBase

from loratune.data.prepare import PreparedData
from loratune.data.stored import write_rows
from loratune.engine.memory import Shortage
from loratune.errors import ResourceError
from loratune.model.device import device_memory
from loratune.runners.engines import Host
from loratune.runners.options import DEFAULT, RunnerOptions
from loratune.runners.pool import PATIENCE, Died, Pool, common_facts
from loratune.runners.queue import TrialQueue
from loratune.runners.runner import Done, FinalJob, Job, More, TrialDone, TrialJob
from loratune.runners.spec import EngineFacts, EngineSpec
from loratune.runners.worker import (
    Do,
    Ended,
    Halt,
    Message,
    NextTrial,
    Offers,
    Order,
    Search,
    Setting,
    Stopped,
    TrialWanted,
    serve_process,
)
from loratune.values import Trial
from loratune.values.events import Event, LiveTrial, Note, Progress

_LOOK = 0.5
"""Seconds between two checks for a request to stop."""
_MOST_DEATHS = 3
"""Deaths of workers without a result between them: more processes would die as well."""


class WorkerPool(Pool):
    """Processes of this machine."""

    def __init__(
        self,
        spec: EngineSpec,
        devices: Sequence[str],
        folder: Path,
        final: Path | None = None,
        *,
        sharded: bool = False,
    ) -> None:
        """A worker for each of `devices` (`cpu` may stand there several times), on rows and weights of `spec`.

        `folder` is for adapters on their way, on the file system of the run; `final` where final ones are kept.
        `sharded`: each holds a part of the base model's linear layers and reads the others'; none outlives another.
        Raises what building the engine raises, in whichever worker.
        """
        self.devices = tuple(devices)
        self.sharded = sharded
        on_cpu = sum(device == "cpu" for device in devices)
        threads = torch.get_num_threads()
        self._settings = [
            Setting(
                spec=replace(spec, device=device, shard=(number, len(devices)) if sharded else (0, 1)),
                final=final,
                scratch=folder / f"worker-{number}",
                threads=max(1, threads // on_cpu) if device == "cpu" else threads,
            )
            for number, device in enumerate(devices)
        ]
        self._lines: list[Connection] = []
        self._processes: list[BaseProcess] = []
        self.beginning = set()
        try:
            for setting in self._settings:
                line, process = _started(setting)
                self._lines.append(line)
                self._processes.append(process)
            if sharded:
                self._introduce()
            facts = [self._await_engine(number) for number in range(len(self))]
        except Died as error:
            self.close()
            raise ResourceError(
                f"{error} while it loaded the base model; give it fewer --devices if it was killed for memory."
            ) from None
        except BaseException:
            self.close()
            raise
        self.facts = common_facts(facts)
        self.peaks = [0] * len(devices)

    def _introduce(self) -> None:
        """Give each worker what the others offer it."""
        offers = []
        for worker in range(len(self)):
            message = self._first_of(worker)
            assert isinstance(message, Offers)
            offers.append(message.parts)
        for worker in range(len(self)):
            self.send(worker, Offers(parts=tuple(parts[worker] for parts in offers)))

    def _await_engine(self, worker: int) -> EngineFacts:
        facts = self._first_of(worker)
        assert isinstance(facts, EngineFacts)
        return facts

    def _first_of(self, worker: int) -> Message:
        """What comes before any order; what building an engine raises is raised here."""
        message = self._received(worker)
        if isinstance(message, Exception):
            raise message
        return message

    @property
    def whole(self) -> bool:
        return not self.sharded or all(process.is_alive() for process in self._processes)

    def __len__(self) -> int:
        return len(self._settings)

    def send(self, worker: int, order: Order) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):
            self._lines[worker].send(order)

    def next_message(
        self, workers: Sequence[int], seconds: float | None
    ) -> tuple[int, Message | Died] | None:
        ready = wait([self._lines[worker] for worker in workers], seconds)
        if not ready:
            return None
        worker = self._lines.index(cast(Connection, ready[0]))
        try:
            return worker, self._received(worker)
        except Died as died:
            return worker, died

    def _received(self, worker: int) -> Message:
        line, process = self._lines[worker], self._processes[worker]
        try:
            message: Message = line.recv()
        except (EOFError, OSError):
            process.join(PATIENCE)
            device, code = self.devices[worker], process.exitcode
            raise Died(f"the process for {device} ended (exit code {code})") from None
        return message

    def renew(self, worker: int) -> None:
        if (
            self.sharded
        ):  # a new one would wait for the others to load too: whoever asks next hears of the death
            self._processes[worker].kill()
            return
        self._end(worker)
        self._lines[worker], self._processes[worker] = _started(self._settings[worker])
        self.beginning.add(worker)

    def close(self) -> None:
        for line in self._lines:
            line.close()
        until = monotonic() + PATIENCE
        for process in self._processes:
            process.join(max(0.0, until - monotonic()))
            if process.is_alive():
                process.kill()

    def _end(self, worker: int) -> None:
        self._lines[worker].close()
        self._processes[worker].kill()
        self._processes[worker].join(PATIENCE)


def _started(setting: Setting) -> tuple[Connection, BaseProcess]:
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve_process, args=(setting, there), daemon=True)
    with _ignoring_interrupts():
        process.start()
    there.close()
    return here, process


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Processes started meanwhile ignore Ctrl-C, which reaches the whole group: this process decides."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass(kw_only=True, eq=False)
class ProcessRunner:
    """A `Runner` on a pool; what a kind of job does not need may be left out, as for `LocalRunner`."""

    pool: Pool
    spec: EngineSpec | None = None
    """Whose micro-batches and threads the workers take; None: as they began."""
    options: RunnerOptions = field(default_factory=RunnerOptions)
    _busy: set[int] = field(default_factory=set, init=False)
    """Workers that carry out an order."""
    _deaths: int = field(default=0, init=False)
    """Since the last result."""
    _live: dict[int, tuple[LiveTrial, ...]] = field(default_factory=dict, init=False)
    """What trains, by worker."""

    @property
    def late(self) -> bool:
        return self.options.late

    def run(self, jobs: Sequence[Job], more: More | None = None) -> Generator[Done, None, None]:
        """The trials of the search first, on all devices; then final trials, shared out, and the rest."""
        trials = [job.trial for job in jobs if isinstance(job, TrialJob)]
        try:
            if trials:
                assert self.options.planner is not None, "trials of a search need a planner"
                queue = TrialQueue(self.options.planner, trials, more)
                assert queue.devices <= len(self.pool), "the plan is of more devices than there are"
                yield from self._search(queue)
            yield from self._rest([job for job in jobs if not isinstance(job, TrialJob)])
        finally:
            self.pool.abandon(sorted(self._busy))
            self._busy.clear()
            self._live.clear()

    def _search(self, queue: TrialQueue) -> Generator[Done, None, None]:
        devices, halted = set(range(queue.devices)), False
        while True:
            if queue.waiting and not self.late:
                for worker in sorted(devices - self._busy - self.pool.beginning):
                    self._order(
                        worker, Search(spec=self.spec, slots=queue.slots, deadline=self.options.deadline)
                    )
            if not self._busy and not (self.pool.beginning and queue.waiting and not self.late):
                return
            if not halted and self.options.stopped():
                halted = True
                for worker in self._busy:
                    self.pool.send(worker, Halt())
            received = self.pool.receive(sorted(self._busy | self.pool.beginning), _LOOK)
            if received is None:
                continue
            worker, message = received
            match message:
                case TrialWanted():
                    trial = None if self.late else queue.next(worker)
                    self.pool.send(worker, NextTrial(trial=trial))
                case Stopped():
                    queue.ended(message.trial, None)
                case TrialDone():
                    self._check_whole()
                    self._deaths = 0
                    queue.ended(message.result.asked, message.result)
                    yield replace(message, adapter=self.options.take(message.result, message.adapter))
                case Died():
                    self._replace(worker, message, queue.lost(worker))
                case _:
                    self._on_message(worker, message)

    def _rest(self, jobs: Sequence[Job]) -> Generator[Done, None, None]:
        """Shares go to whoever is there: a worker that has died need not come back."""
        final = [job for job in jobs if isinstance(job, FinalJob)]
        shares = [list[Job](final[number :: len(self.pool)]) for number in range(len(self.pool))]
        shares[0] += [job for job in jobs if not isinstance(job, FinalJob)]
        waiting, given = [share for share in shares if share], dict[int, list[Job]]()
        while waiting or self._busy:
            for worker in sorted(set(range(len(self.pool))) - self._busy - self.pool.beginning):
                if waiting:
                    given[worker] = waiting.pop(0)
                    self._order(
                        worker, Do(spec=self.spec, jobs=tuple(given[worker]), folder=self.options.folder)
                    )
            received = self.pool.receive(sorted(self._busy | self.pool.beginning))
            assert received is not None
            worker, message = received
            if isinstance(message, Done):
                self._check_whole()
                self._deaths = 0
                given[worker].remove(message.job)
                yield message
            elif isinstance(message, Died):
                if left := given.pop(worker, []):
                    waiting.append(left)
                self._replace(worker, message, ())
            else:
                self._on_message(worker, message)

    def _order(self, worker: int, order: Order) -> None:
        self.pool.send(worker, order)
        self._busy.add(worker)

    def _check_whole(self) -> None:
        """Raise `ResourceError` where a result may come of weights whose holder has died."""
        if not self.pool.whole:
            raise _holder_died("A process ended")

    def _replace(self, worker: int, died: Died, lost: Sequence[Trial]) -> None:
        """Raises `ResourceError` where one worker after the other dies."""
        self._deaths += 1
        self._busy.discard(worker)
        self._live.pop(worker, None)
        if self.pool.sharded:
            raise _holder_died(str(died))
        if self._deaths > _MOST_DEATHS:
            raise ResourceError(
                f"{died} before its trials did, the last of {self._deaths} without a result between them; those that "
                "are finished are kept: continue with --resume, with less memory or fewer devices if it was killed for "
                "memory."
            )
        again = f"; its {len(lost)} unfinished trials start again" if lost else ""
        self.options.tell(Note(text=f"{str(died).capitalize()} and is replaced{again}."))
        self.pool.renew(worker)

    def _on_message(self, worker: int, message: Message) -> None:
        """What needs no answer."""
        match message:
            case EngineFacts():
                pass
            case Ended():
                self.pool.peaks[worker] = max(self.pool.peaks[worker], message.peak_bytes)
                self._busy.discard(worker)
                self._live.pop(worker, None)
            case Progress():
                self._live[worker] = message.trials
                everybody = [self._live[each] for each in sorted(self._live)]
                self.options.tell(
                    replace(message, trials=tuple(trial for trials in everybody for trial in trials))
                )
            case Event():
                self.options.tell(message)
            case Shortage():
                self.options.on_shortage(message)
            case _:
                raise TypeError(f"a worker must not send a {type(message).__name__} now.")


@dataclass(frozen=True, eq=False)
class PooledEngines:
    """`Engines` in the workers of a pool."""

    pool: Pool

    @property
    def facts(self) -> EngineFacts:
        return self.pool.facts

    def runner(self, spec: EngineSpec, options: RunnerOptions = DEFAULT) -> ProcessRunner:
        return ProcessRunner(pool=self.pool, spec=spec, options=options)

    def peak_bytes(self) -> int:
        return max(self.pool.peaks)

    def forget_peak(self) -> None:
        self.pool.forget_peaks()


def _holder_died(who: str) -> ResourceError:
    return ResourceError(
        f"{who}, which held a part of the base model that the others need; trials that are finished are kept: continue "
        "with --resume, with less --device-memory if it was killed for memory."
    )


def in_processes(devices: Sequence[str], scratch: Path, *, sharded: bool = False) -> Host:
    """A `Host` of one process for each device; `scratch` is on the file system of the run, and removed in the end.

    The processes take the rows that have been read here, from files in `scratch`; on a processor they share its memory.
    `sharded`: with the base model's linear layers spread over them.
    """

    @contextmanager
    def host(
        spec: EngineSpec, data: PreparedData, tokenizer: PreTrainedTokenizerBase
    ) -> Iterator[PooledEngines]:
        with scratch_rows(scratch, data) as rows:
            memory = spec.device_memory or _share_of_memory(devices)
            own = replace(spec.sealed(data), rows=str(rows), device_memory=memory)
            with WorkerPool(own, devices, scratch, sharded=sharded) as pool:
                yield PooledEngines(pool)

    return host


@contextmanager
def scratch_rows(scratch: Path, data: PreparedData) -> Iterator[Path]:
    """The rows in a folder of `scratch`, which is made for the block and removed behind it."""
    new = not scratch.parent.exists()
    scratch.mkdir(parents=True, exist_ok=True)
    try:
        yield write_rows(data, scratch / "rows")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        with suppress(OSError):  # where nothing came of the run
            if new:
                scratch.parent.rmdir()


def _share_of_memory(devices: Sequence[str]) -> str | None:
    """The share of one of several processes on this processor; GPUs have memory of their own."""
    if "cpu" not in devices or len(devices) < 2:
        return None
    return str(device_memory(torch.device("cpu")) // len(devices))
