"""The loop of a pack: trials enter slots, train together, are read, leave, and make room for the next.

Where memory runs out beside all live trials, half of them are parked until others have left. Knows steps,
slots and readings, not what owns the model; nothing of strategies, studies or files.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from loratune.data.table import TokenTable
from loratune.engine.evaluate import Evaluation
from loratune.engine.live import EarlyStopping, LiveTrial
from loratune.engine.memory import DoesNotFit, Failure, Place, Shortage
from loratune.engine.scoring import Scoring
from loratune.engine.slot import Slot
from loratune.engine.step import TrainingStep
from loratune.lora.layout import Adapter
from loratune.values import CurvePoint, Trial, TrialResult


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotProgress:
    """One live trial."""

    trial: Trial
    step: int
    total_steps: int
    loss: float
    """Loss of the last step, nats per supervised token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackProgress:
    """A pack after one step."""

    slots: tuple[SlotProgress, ...]
    tokens: int
    """Real tokens trained in this step."""
    seconds: float
    """Length of this step."""


T = TypeVar("T")


class Attempt(Protocol):
    """Calls something; a `Failure` where memory ran out, with all that it had made given back."""

    def __call__(self, work: Callable[[], T], /) -> T | Failure: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a pack does its work with."""

    step: TrainingStep
    enter: Callable[[Sequence[Trial]], list[Slot]]
    """Slots of trials before their first step."""
    read: Callable[[Sequence[Adapter], TokenTable], list[Evaluation]]
    """Raises `DoesNotFit` where a single row of one adapter is too much."""
    predict: Callable[
        [Sequence[Adapter], TokenTable, Sequence[Evaluation]], Sequence[npt.NDArray[np.int64] | None]
    ]
    """The most likely label of each row, where there are labels; the adapters' evaluations on these rows help."""
    attempt: Attempt
    validation: TokenTable
    sample: TokenTable
    """The rows of readings during training."""
    readings: int
    """Readings of a trial without early stopping."""
    labels_at_end: bool
    scoring: Scoring
    """How a verdict is measured."""
    cost: Callable[[Trial], float]
    """Cost of a whole trial."""
    on_shortage: Callable[[Shortage], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Callbacks:
    """Callables that supply trials and observe them; see `PackEngine.results`."""

    next_trial: Callable[[], Trial | None]
    on_progress: Callable[[PackProgress], None] | None
    should_stop: Callable[[Trial, tuple[CurvePoint, ...]], bool] | None


class PackLoop:
    """One run of a pack, while the hooks are in place."""

    def __init__(
        self,
        work: Work,
        callers: Callbacks,
        *,
        slots: int,
        early_stopping: EarlyStopping | None,
    ) -> None:
        self._work = work
        self._callers = callers
        self._slots = slots
        self._early_stopping = early_stopping
        self._live: list[LiveTrial] = []
        self._parked: list[LiveTrial] = []
        """Trials parked, in the order in which they come back."""
        self._waiting: list[Trial] = []
        """Trials that have been handed over and have no slot yet."""
        self._just_read: list[LiveTrial] = []
        self._offered = True
        """Whether the next trial may be asked for: not after a None, until a result."""

    def results(self) -> Iterator[tuple[TrialResult, Adapter]]:
        """Each result with its adapter as it comes, until no trial is left."""
        while True:
            self._enter()
            if not self._live:
                return
            progress = self._parking(self._step)
            self._read()
            yield from self._end()
            if progress is not None and self._callers.on_progress is not None:
                self._callers.on_progress(progress)

    def _enter(self) -> None:
        """Fill the slots: with trials parked, with those that wait, with new ones."""
        while self._parked and len(self._live) < self._slots:
            restored = self._attempt(self._parked[0].restore)
            if isinstance(restored, Failure):
                self._admit_no_more(restored)
                return
            self._live.append(self._parked.pop(0))
        while self._offered and len(self._live) + len(self._waiting) < self._slots:
            trial = self._callers.next_trial()
            self._offered = trial is not None
            if trial is not None:
                self._waiting.append(trial)
        many = self._slots - len(self._live)
        while entering := self._waiting[:many]:
            found = self._attempt(partial(self._work.enter, entering))
            if isinstance(found, Failure):
                many = len(entering) // 2
                if not many:
                    self._admit_no_more(found)
                    return
                continue
            self._live += [self._live_trial(slot) for slot in found]
            del self._waiting[: len(entering)]
            many = min(many, self._slots - len(self._live))

    def _live_trial(self, slot: Slot) -> LiveTrial:
        return LiveTrial(
            slot,
            readings=self._work.readings,
            stopping=self._early_stopping,
            sampled=len(self._work.sample) < len(self._work.validation),
        )

    def _attempt(self, work: Callable[[], T]) -> T | Failure:
        """Do the work; if it fails while no slot is live, once more, as its memory has been given back by then."""
        found = self._work.attempt(work)
        return self._work.attempt(work) if isinstance(found, Failure) and not self._live else found

    def _admit_no_more(self, failure: Failure) -> None:
        """Limit the pack to the trials in memory, the most that fit."""
        if not self._live:
            raise DoesNotFit(failure.message)
        self._slots = len(self._live)
        self._tell(failure)

    def _parking(self, work: Callable[[], T], *, fewest: int = 1) -> T:
        """What `work` returns, with half of the trials parked as often as memory runs out.

        Raises `DoesNotFit` where only `fewest` are left.
        """
        while isinstance(found := self._work.attempt(work), Failure):
            if len(self._live) <= fewest:
                # no trial to park: try once more, now that the failed allocation is freed
                if isinstance(found := self._work.attempt(work), Failure):
                    raise DoesNotFit(found.message)
                break
            leaving = self._live[-max(1, len(self._live) // 2) :]
            for entry in leaving:
                entry.park()
            self._parked = leaving + self._parked
            self._slots = max(1, len(self._live) - len(leaving))
            self._tell(found)
            del self._live[-len(leaving) :]
        return found

    def _tell(self, failure: Failure) -> None:
        self._work.on_shortage(
            Shortage(
                place=Place.PACK,
                trials=tuple(entry.trial for entry in self._live),
                tokens=self._work.step.micro_batch_tokens,
                needed=failure.needed,
                now=self._slots,
            )
        )

    def _step(self) -> PackProgress | None:
        """One step of the live trials, but for those that came back for a reading or their end; None where all did."""
        training = [entry for entry in self._live if entry.trains]
        if not training:
            return None
        before = [entry.slot.trained_tokens for entry in training]
        started = perf_counter()
        tokens = self._work.step([entry.slot for entry in training])
        seconds = perf_counter() - started
        for entry, count in zip(training, before, strict=True):
            entry.seconds += seconds * (entry.slot.trained_tokens - count) / max(1, tokens)
        slots = tuple(
            SlotProgress(
                trial=entry.trial,
                step=entry.slot.step,
                total_steps=entry.slot.total_steps,
                loss=entry.slot.losses[-1],
            )
            for entry in training
        )
        return PackProgress(slots=slots, tokens=tokens, seconds=seconds)

    def _read(self) -> None:
        """Evaluate the live trials whose reading is due, and ask whether they continue."""
        self._parking(self._read_due)
        ask = self._callers.should_stop
        for entry in self._just_read:
            if ask is not None and not entry.ended and ask(entry.trial, tuple(entry.curve)):
                slot = entry.slot
                entry.stopped = f"stopped by the search at step {slot.step} of {slot.total_steps}"
        self._just_read.clear()

    def _read_due(self) -> None:
        """Take the readings that are due, on the same rows together. Those that memory cuts off stay due."""
        due = [entry for entry in self._live if entry.reading_due]
        for entry, evaluation in self._evaluated(due, [each.slot.adapter for each in due], self._work.sample):
            entry.read(evaluation)
            self._just_read.append(entry)
        due = [entry for entry in self._live if entry.verdict_due]
        adapters = [entry.adapter() for entry in due]
        for entry, evaluation in self._evaluated(due, adapters, self._work.validation):
            entry.conclude(evaluation)

    def _evaluated(
        self, entries: Sequence[LiveTrial], adapters: Sequence[Adapter], table: TokenTable
    ) -> Iterator[tuple[LiveTrial, Evaluation]]:
        """Each with the evaluation of its adapter, which has taken its share of the seconds."""
        if not entries:
            return
        started = perf_counter()
        evaluations = self._work.read(adapters, table)
        seconds = (perf_counter() - started) / len(entries)
        for entry, evaluation in zip(entries, evaluations, strict=True):
            entry.seconds += seconds
            yield entry, evaluation

    def _end(self) -> Iterator[tuple[TrialResult, Adapter]]:
        """Hand over the trials that have ended."""
        ended = [entry for entry in self._live if entry.finished]
        self._live = [entry for entry in self._live if entry not in ended]
        for entry in ended:
            entry.slot.release()
        for found in self._results(ended):
            yield found
            self._offered = True

    def _results(self, ended: Sequence[LiveTrial]) -> list[tuple[TrialResult, Adapter]]:
        work = self._work
        complete = [entry for entry in ended if entry.final is not None]
        started = perf_counter()
        asked = complete if work.labels_at_end else []
        adapters = [entry.adapter() for entry in asked]
        verdicts = [entry.final for entry in asked if entry.final is not None]
        predictions = self._parking(lambda: work.predict(adapters, work.validation, verdicts), fewest=0)
        for entry in complete:
            entry.seconds += (perf_counter() - started) / len(complete)
        by_entry = dict(zip(map(id, asked), predictions, strict=True))
        found = []
        for entry in ended:
            metrics, scores = self._measured(entry, by_entry.get(id(entry)))
            result = entry.result(work.cost(entry.trial), metrics, scores)
            found.append((result, entry.adapter()))
        return found

    def _measured(
        self, entry: LiveTrial, predictions: npt.NDArray[np.int64] | None
    ) -> tuple[Mapping[str, float], Mapping[str, npt.NDArray[np.float64]]]:
        """Metrics of its verdict and scores of its rows; empty where it has none."""
        if entry.final is None:
            return {}, {}
        verdict = entry.final if predictions is None else replace(entry.final, predictions=predictions)
        return self._work.scoring.measure(verdict, self._work.validation)
