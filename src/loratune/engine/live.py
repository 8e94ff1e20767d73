"""A trial while it trains: its slot, its readings, its best weights, and the result it ends with.

Knows how a result is made up; nothing of the base model or of the trials beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from time import time

import numpy as np
import torch

from loratune.engine.evaluate import Evaluation
from loratune.engine.slot import Slot
from loratune.lora.layout import Adapter
from loratune.values import CurvePoint, Trial, TrialResult, TrialState


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlyStopping:
    """Evaluate on validation rows during training, and keep the weights that are best on them.

    In the end these weights are evaluated on all rows, once; that evaluation is the result.
    """

    evaluations: int = 10
    """Evaluations over a trial's whole length, evenly spaced; the last is at its end."""
    rows: int | None = None
    """Validation rows of each evaluation, always the same ones; None: all."""
    patience: int = 3
    """Evaluations in a row without improvement after which the trial ends."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Best:
    step: int
    evaluation: Evaluation
    weights: torch.Tensor


class LiveTrial:
    """A trial in its slot: readings on some validation rows, in the end the verdict on all of them.

    Without early stopping the verdict is on the last weights, and the last point of the curve; with it on the
    best, and the readings on some rows alone are the curve.
    """

    def __init__(
        self, slot: Slot, *, readings: int, stopping: EarlyStopping | None, sampled: bool = True
    ) -> None:
        """`sampled`: whether readings are on fewer rows than all."""
        self.slot = slot
        self.stopping = stopping
        self.curve: list[CurvePoint] = []
        self.seconds = 0.0
        self.began = _now()
        self.stopped = ""
        """Why it ended before its last step, other than by diverging; empty otherwise."""
        count = max(1, stopping.evaluations if stopping else readings)
        total = slot.total_steps
        steps = {max(1, round(i * total / count)) for i in range(1, count)}
        self._reading_steps = steps | {total} if stopping else steps - {total}
        self._read_until = 0
        self._sampled = sampled
        self._best: _Best | None = None
        self._verdict: Evaluation | None = None
        self._without_improvement = 0

    @property
    def trial(self) -> Trial:
        return self.slot.trial

    @property
    def ended(self) -> bool:
        return self.slot.done or bool(self.stopped)

    @property
    def reading_due(self) -> bool:
        """Whether the last step is one after which to evaluate, and that has not been done."""
        step = self.slot.step
        return not self.slot.failure and step in self._reading_steps and step > self._read_until

    @property
    def verdict_due(self) -> bool:
        """Whether it has ended, and the weights that it hands over are still to be evaluated on all rows."""
        if not self.ended or self.reading_due or self.final is not None:
            return False
        return self._best is not None if self.stopping else not (self.stopped or self.slot.failure)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to be done but to hand it over."""
        return self.ended and not self.reading_due and not self.verdict_due

    @property
    def trains(self) -> bool:
        """Whether a step comes next."""
        return not (self.ended or self.reading_due)

    def read(self, evaluation: Evaluation) -> None:
        """Take a reading of the weights as they are, with early stopping a candidate for the best."""
        if not self._finite(evaluation):
            return
        best = self._best_with(evaluation) if self.stopping else None  # may need memory: before all else
        self._add_point(evaluation)
        if self.stopping is None:
            return
        self._without_improvement = 0 if best is not self._best else self._without_improvement + 1
        self._best = best
        if self._without_improvement >= self.stopping.patience and not self.slot.done:
            self.stopped = f"stopped early at step {self.slot.step} of {self.slot.total_steps}"

    def conclude(self, evaluation: Evaluation) -> None:
        """Take the verdict: of `adapter`, on all validation rows."""
        if not self._finite(evaluation):
            self._best = None
            return
        if self.stopping is None:
            self._add_point(evaluation)
        self._verdict = evaluation

    def _finite(self, evaluation: Evaluation) -> bool:
        """Whether the trial can continue; else it has diverged."""
        if isfinite(evaluation.nll):
            return True
        self.slot.failure = f"validation loss {evaluation.nll} at step {self.slot.step}"
        return False

    def _add_point(self, evaluation: Evaluation) -> None:
        slot = self.slot
        self.curve.append(
            CurvePoint(
                step=slot.step,
                fraction=slot.step / slot.total_steps,
                train_nll=_mean(slot.losses[self._read_until :]),
                validation_nll=evaluation.nll,
            )
        )
        self._read_until = slot.step

    def _best_with(self, evaluation: Evaluation) -> _Best | None:
        """The best evaluation and its weights, this one included."""
        slot, best = self.slot, self._best
        if best is not None and evaluation.nll >= best.evaluation.nll:
            return best
        weights = slot.adapter.weights if slot.done else slot.adapter.weights.clone()
        return _Best(step=slot.step, evaluation=evaluation, weights=weights)

    def park(self) -> None:
        """Put what it holds in the device's memory aside, until `restore`."""
        best = self._best
        self.slot.park([] if best is None else [best.weights])

    def restore(self) -> None:
        """Be in memory again; where that does not suffice its error is raised, no more."""
        self.slot.restore()

    @property
    def final(self) -> Evaluation | None:
        """The evaluation that counts, of `adapter` on all validation rows; None where there is none."""
        if self._best is not None and not self._sampled:
            return self._best.evaluation
        return self._verdict

    def adapter(self) -> Adapter:
        """The adapter that the trial hands over: the best one with early stopping, else the last."""
        adapter = self.slot.adapter
        if self._best is not None:
            adapter = Adapter(
                hyper_parameters=adapter.hyper_parameters,
                layout=adapter.layout,
                weights=self._best.weights,
            )
        return adapter

    def result(
        self, full_cost: float, metrics: Mapping[str, float], scores: Mapping[str, np.ndarray]
    ) -> TrialResult:
        """The trial's end in numbers; `full_cost` is what all its steps and evaluations cost.

        `metrics` and `scores` are those of the verdict; empty where there is none.
        """
        slot = self.slot
        final = self.final
        if final is not None:
            state, nll = TrialState.COMPLETE, final.nll
        elif slot.failure:
            state, nll = TrialState.DIVERGED, inf
        else:
            state, nll = TrialState.STOPPED, self.curve[-1].validation_nll
        last = slot.losses[-max(1, len(slot.losses) // 10) :]
        return TrialResult(
            asked=slot.trial,
            trial=slot.trial,
            state=state,
            nll=nll,
            train_nll=_mean(last) if state is not TrialState.DIVERGED else inf,
            metrics=metrics,
            curve=tuple(self.curve),
            example_nll=final.example_nll if final else None,
            example_scores=scores,
            step_nll=np.array(slot.losses),
            gradient_norms=np.array(slot.gradient_norms),
            trained_tokens=slot.trained_tokens,
            steps=slot.step,
            cost=full_cost * (slot.step / slot.total_steps),
            seconds=self.seconds,
            began=self.began,
            ended=_now(),
            message=self._message(),
            failure=slot.failure,
        )

    def _message(self) -> str:
        words = self.slot.failure or self.stopped
        if words and self._best is not None:
            words += f"; the weights of step {self._best.step} are kept"
        return words


def _now() -> float:
    """Seconds since 1970, to the millisecond."""
    return round(time(), 3)


def _mean(losses: Sequence[float]) -> float:
    """Mean over the steps that were not skipped; infinite where all were."""
    finite = [loss for loss in losses if isfinite(loss)]
    return float(np.mean(finite)) if finite else inf
