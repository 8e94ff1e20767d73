"""Jobs done in this process, by one engine. Knows the engine and the folder for adapters; decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from time import monotonic

import numpy as np
import torch

from loratune.costs.generation import measure_generation
from loratune.costs.limits import Limits
from loratune.costs.measuring import calibrate
from loratune.costs.readings import plan_evaluations
from loratune.data.profile import whole_text, without_last
from loratune.data.table import TokenTable
from loratune.engine.cutting import cut_scores
from loratune.engine.live import EarlyStopping
from loratune.engine.loop import PackProgress
from loratune.engine.pack import PackEngine
from loratune.engine.probe import base_loss, gradient_noise, probe
from loratune.kernels import first_use
from loratune.lora.layout import Adapter, find_targets
from loratune.lora.peft_io import load_adapter, save_adapter
from loratune.lora.spectrum import strengths
from loratune.runners.options import RunnerOptions
from loratune.runners.queue import Queue, TrialQueue
from loratune.runners.references import References
from loratune.runners.runner import (
    AdapterFile,
    Audited,
    AuditJob,
    BaseLossJob,
    BaseLossMeasured,
    Calibrated,
    CalibrationJob,
    CutsJob,
    CutsScored,
    Done,
    Evaluated,
    FinalJob,
    Job,
    More,
    NoiseJob,
    NoiseMeasured,
    Probed,
    ProbeJob,
    ScoringJob,
    TrialDone,
    TrialJob,
    WritingJob,
    WritingMeasured,
)
from loratune.values import CurvePoint, ModelProfile, Trial, TrialState
from loratune.values.events import LiveTrial, Progress, Tell, discard


def read_adapter(file: AdapterFile, profile: ModelProfile, device: torch.device | None = None) -> Adapter:
    """An adapter of such a base model from its folder, in the CPU's memory where no device is given.

    Raises `ModelError` where it is missing or broken.
    """
    targets = find_targets(profile.targets, file.hyper_parameters.target_modules)
    return load_adapter(file.folder, file.hyper_parameters, targets, device=device or torch.device("cpu"))


def tell_first_uses(tell: Tell) -> None:
    """Tell what was made for steps to come since this was last told to anybody."""
    made = None if tell is discard else first_use.taken()
    if made is not None:
        tell(made)


SECONDS = 0.25
"""Least time between two events."""


class PackTeller:
    """The engine's `on_progress`; `flush` when the pack has ended."""

    def __init__(self, tell: Tell, *, clock: Callable[[], float] = monotonic) -> None:
        self._tell = tell
        self._clock = clock
        self._last = -SECONDS
        self._latest: PackProgress | None = None
        self._steps = self._tokens = 0
        self._seconds = self._occupied = 0.0

    def __call__(self, pack: PackProgress) -> None:
        """A step has been taken."""
        self._latest = pack
        self._steps += 1
        self._tokens += pack.tokens
        self._seconds += pack.seconds
        self._occupied += pack.seconds * len(pack.slots)
        if self._clock() - self._last >= SECONDS:
            self.flush()

    def flush(self) -> None:
        """Publish the steps that no event has reported yet."""
        if self._latest is None:
            return
        trials = tuple(
            LiveTrial(trial=slot.trial, step=slot.step, total_steps=slot.total_steps, loss=slot.loss)
            for slot in self._latest.slots
        )
        occupancy = self._occupied / self._seconds if self._seconds else float(len(trials))
        event = Progress(
            trials=trials,
            steps=self._steps,
            tokens=self._tokens,
            seconds=self._seconds,
            occupancy=occupancy,
        )
        self._last = self._clock()
        self._latest, self._steps, self._tokens, self._seconds, self._occupied = None, 0, 0, 0.0, 0.0
        self._tell(event)
        tell_first_uses(self._tell)


def early_stopping(train: TokenTable, validation: TokenTable, epochs: float, patience: int) -> EarlyStopping:
    """Early stopping of final trials that train `epochs` epochs on these rows."""
    tokens = int(train.lengths.sum())
    looks = plan_evaluations(epochs * tokens, int(validation.lengths.sum()), len(validation))
    return EarlyStopping(evaluations=looks.count, rows=looks.rows, patience=patience)


@dataclass(frozen=True, kw_only=True, eq=False)
class LocalRunner:
    """A `Runner`; what a kind of job does not need may be left out. `options.on_shortage` is the engine's own here."""

    engine: PackEngine
    limits: Limits | None = None
    """What fits in memory; for calibration."""
    test: TokenTable | None = None
    """Test rows, for scoring."""
    references: References | None = None
    """Has the base model's likelihoods, where what is learnt compares with them."""
    options: RunnerOptions = field(default_factory=RunnerOptions)

    @property
    def late(self) -> bool:
        return self.options.late

    def run(self, jobs: Sequence[Job], more: More | None = None) -> Generator[Done, None, None]:
        """The trials of the search first, as the plan packs them; then the final ones, in one pack; then the rest."""
        if self.references is not None and not all(isinstance(job, CalibrationJob) for job in jobs):
            yield from self._referenced().run(jobs, more)
            return
        trials = [job for job in jobs if isinstance(job, TrialJob)]
        if trials:
            assert self.options.planner is not None, "trials of a search need a planner"
            yield from self.search(TrialQueue(self.options.planner, [job.trial for job in trials], more))
        final = [job for job in jobs if isinstance(job, FinalJob)]
        if final:
            yield from self._final(final)
        for done in self._others(jobs):
            tell_first_uses(self.options.tell)
            yield done

    def _others(self, jobs: Sequence[Job]) -> Iterator[Done]:
        """Jobs that train no trial to its end, one after the other."""
        for job in jobs:
            match job:
                case CalibrationJob():
                    yield self._calibrated(job)
                case NoiseJob():
                    yield self._noise(job)
                case ScoringJob():
                    yield self._evaluated(job)
                case CutsJob():
                    yield self._cut(job)
                case AuditJob():
                    found = strengths(self._adapter(job.adapter), self.engine.base.model)
                    yield Audited(job=job, strengths=found)
                case BaseLossJob():
                    loss = base_loss(self.engine, seconds=job.seconds, seed=job.seed)
                    yield BaseLossMeasured(job=job, loss=loss)
                case ProbeJob():
                    yield self._probed(job)
                case WritingJob():
                    assert self.test is not None, "the runner has no test rows"
                    written = measure_generation(self.engine, self.engine.validation, self.test)
                    yield WritingMeasured(job=job, generation=written)
                case TrialJob() | FinalJob():
                    pass  # done before, all together
                case _:
                    raise TypeError(f"a runner of this process does no {type(job).__name__}")

    def search(self, queue: Queue) -> Generator[TrialDone, None, None]:
        """Train what a queue brings, in one pack, until it brings nothing more."""
        if self.references is not None:
            yield from self._referenced().search(queue)
            return
        teller = PackTeller(self.options.tell)

        def next_trial() -> Trial | None:
            return None if self.late else queue.next()

        def should_stop(trial: Trial, curve: tuple[CurvePoint, ...]) -> bool:
            return self.late

        results = self.engine.results(
            next_trial, slots=queue.slots, on_progress=teller, should_stop=should_stop
        )
        with closing(results):
            for result, adapter in results:
                # only the clock stops trials here: --resume is to train them
                stopped = result.state is TrialState.STOPPED
                queue.ended(result.asked, None if stopped else result)
                if stopped:
                    continue
                model = self.engine.base.model
                kept = self.options.largest.offer(result, adapter, model) if self.options.largest else None
                finalist = (
                    self.options.finalists.offer(result, adapter, model) if self.options.finalists else None
                )
                yield TrialDone(job=TrialJob(trial=result.asked), result=result, adapter=kept or finalist)
        teller.flush()

    def _referenced(self) -> LocalRunner:
        """The same on rows with their references, which are computed now where they are missing."""
        assert self.references is not None
        engine, of = self.engine, partial(self.references.of, self.engine)
        engine = replace(engine, train=of(engine.train), validation=of(engine.validation))
        return replace(
            self, engine=engine, test=None if self.test is None else of(self.test), references=None
        )

    def _final(self, jobs: Sequence[FinalJob]) -> Generator[Done, None, None]:
        assert self.options.folder is not None, "a final run needs a folder for its adapters"
        of_trial = {job.trial.key: job for job in jobs}
        waiting, teller = [job.trial for job in reversed(jobs)], PackTeller(self.options.tell)
        results = self.engine.results(
            lambda: waiting.pop() if waiting else None,
            slots=len(waiting),
            on_progress=teller,
            early_stopping=early_stopping(
                self.engine.train,
                self.engine.validation,
                jobs[0].trial.hyper_parameters.epochs,
                jobs[0].patience,
            ),
        )
        with closing(results):
            for result, adapter in results:
                folder = self.options.folder / result.asked.key if result.finished else None
                if folder is not None:
                    save_adapter(adapter, folder, self.engine.base.model)
                yield TrialDone(job=of_trial[result.asked.key], result=result, adapter=folder)
        teller.flush()

    def _calibrated(self, job: CalibrationJob) -> Calibrated:
        assert self.limits is not None, "calibration needs the limits of memory"
        engine, references = self.engine, self.references
        if references is not None:
            train, validation = references.unknown(engine.train), references.unknown(engine.validation)
            engine = replace(engine, train=train, validation=validation)
        found = calibrate(
            engine,
            self.limits,
            job.recipe,
            pack_size=job.pack_size,
            least_rate=job.least_rate,
            dora=job.dora,
        )
        return Calibrated(job=job, calibration=found)

    def _noise(self, job: NoiseJob) -> NoiseMeasured:
        found = gradient_noise(
            self.engine,
            r=job.r,
            lora_alpha=job.lora_alpha,
            share=job.share,
            epochs=job.epochs,
            seed=job.seed,
        )
        return NoiseMeasured(job=job, noise=found)

    def _probed(self, job: ProbeJob) -> Probed:
        found = probe(self.engine, r=job.r, lora_alpha=job.lora_alpha, seconds=job.seconds, seed=job.seed)
        return Probed(job=job, probe=found)

    def _adapter(self, file: AdapterFile) -> Adapter:
        return read_adapter(file, self.engine.base.profile, self.engine.base.device)

    def _evaluated(self, job: ScoringJob) -> Evaluated:
        models = [None if each is None else self._adapter(each) for each in job.adapters]
        evaluations = self.engine.evaluate(
            models, self._table(job), labels=job.labels, max_new_tokens=job.max_new_tokens
        )
        return Evaluated(job=job, evaluations=tuple(evaluations))

    def _table(self, job: ScoringJob) -> TokenTable:
        if job.split == "validation" and job.rows is not None:
            return self.engine.sample(job.rows)
        whole = {"train": self.engine.train, "validation": self.engine.validation, "test": self.test}[
            job.split
        ]
        assert whole is not None, "the runner has no test rows"
        chosen = np.arange(len(whole)) if job.chosen is None else np.array(job.chosen, np.int64)
        match job.text:
            case "whole":
                return whole_text(whole, chosen)
            case "without last":
                return without_last(whole, chosen)
            case _:
                return whole if job.chosen is None else whole.take(chosen)

    def _cut(self, job: CutsJob) -> CutsScored:
        adapter = self._adapter(job.adapter)
        table = self.engine.validation.take(job.rows)
        found = cut_scores(self.engine, adapter, job.trial, job.cuts, table, labels=job.labels)
        return CutsScored(job=job, found=found)
