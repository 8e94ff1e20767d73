"""What follows from out-of-memory errors: reported, kept with the study's calibration, applied to the next packs.

Knows plans and numbers; the engine has recovered from the error before anything is learnt from it here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from loratune.costs.calibration import CALIBRATION, Calibration
from loratune.costs.correction import UNCORRECTED, corrected
from loratune.costs.limits import Limits
from loratune.costs.memory import MemoryEstimate
from loratune.costs.packing import TrialLoad
from loratune.costs.planner import Planner
from loratune.costs.spread import SpreadPlan
from loratune.engine.memory import Place, Shortage
from loratune.values import Evidence, HyperParameters, Trial
from loratune.values.events import Note, Tell
from loratune.values.plain import to_plain

if TYPE_CHECKING:  # only named here: importing it imports Optuna
    from loratune.study.record import Study

_SHORTAGES = "shortages"


@dataclass(kw_only=True, eq=False)
class LearningPlanner:
    """Plans with what is known by now; `learn` is for the engine's `on_shortage`."""

    study: Study
    planner: Planner
    calibration: Calibration
    tell: Tell
    """Called with every error."""

    def load(self, trial: Trial) -> TrialLoad:
        """`Planner.load`."""
        return self.planner.load(trial)

    def plan(self, trials: Sequence[Trial]) -> SpreadPlan:
        """`Planner.plan`."""
        return self.planner.plan(trials)

    def room(self, trials: Sequence[HyperParameters]) -> int:
        """`Planner.room`."""
        return self.planner.room(trials)

    def learn(self, shortage: Shortage) -> None:
        """Keep what is smaller from now on, and correct the memory model where it had predicted too little."""
        estimate = failed(self.planner.limits, shortage)
        self.calibration = learnt(self.calibration, self.planner.limits, shortage)
        tokens = self.calibration.micro_batch_tokens or self.planner.limits.micro_batch_tokens
        self.planner = replace(
            self.planner,
            limits=replace(
                self.planner.limits, micro_batch_tokens=tokens, correction=self.calibration.correction
            ),
            times=self.calibration.times,
            slots=min(self.planner.slots, self.calibration.slots),
        )
        words = shortage.sentence
        if estimate is not None:
            words += f" Predicted were {estimate.total / 2**30:.1f} GiB."
        self.study.put_fact(_SHORTAGES, [*self.sentences, words])
        self.study.put_fact(CALIBRATION, to_plain(self.calibration))
        self.tell(Note(text=words))

    @property
    def sentences(self) -> tuple[str, ...]:
        """One for every error that the study has recovered from, earlier parts of a resumed run included."""
        return self.study.decode_fact(_SHORTAGES, _sentences) or ()


def _sentences(kept: list[str]) -> tuple[str, ...]:
    return tuple(map(str, kept))


def learnt(calibration: Calibration, limits: Limits, shortage: Shortage) -> Calibration:
    """The calibration after an out-of-memory error; what is predicted never becomes less.

    An evaluation corrects its own micro-batches only. Memory that others hold is no
    fault of the model's: where it had predicted enough, it stays as it is.
    """
    if shortage.place is Place.EVALUATION:
        return replace(calibration, evaluation_tokens=shortage.now)
    estimate = failed(replace(limits, correction=UNCORRECTED), shortage)
    correction = calibration.correction
    if estimate is not None:
        context = limits.execution.runtime if limits.execution.device == "cuda" else 0
        needed = shortage.needed + context
        correction = corrected(correction, needed, estimate.peak(needed))
    if shortage.place is Place.PACK:
        return replace(calibration, correction=correction, slots=min(calibration.slots, shortage.now))
    return replace(calibration, correction=correction, micro_batch_tokens=shortage.now)


def failed(limits: Limits, shortage: Shortage) -> MemoryEstimate | None:
    """What was predicted for the pack and the micro-batch that failed; None where no pack was in memory."""
    if not shortage.trials or shortage.place is Place.EVALUATION:
        return None
    seen = replace(
        limits,
        micro_batch_tokens=shortage.tokens,
        max_length=min(limits.max_length, shortage.tokens),
        recompute=shortage.recomputed,
    )
    pack = [trial.hyper_parameters for trial in shortage.trials]
    return seen.estimate(pack, step_tokens=shortage.tokens)


def survived(sentences: Sequence[str]) -> tuple[Evidence, ...]:
    """The claim of a run's result about its out-of-memory errors, where there were any."""
    if not sentences:
        return ()
    times = "once" if len(sentences) == 1 else f"{len(sentences)} times"
    return (
        Evidence(claim=f"memory ran out {times} and every trial continued; most recently: {sentences[-1]}"),
    )
