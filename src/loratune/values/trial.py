"""A trial, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from hashlib import sha256
from json import dumps
from math import inf
from typing import TYPE_CHECKING, Any, Self

from loratune.errors import HyperParameterError
from loratune.values.hyperparameters import HyperParameters

if TYPE_CHECKING:  # the options are read long before numpy is needed
    import numpy as np
    import numpy.typing as npt


class Stage(StrEnum):
    """The questions that a search answers, in order."""

    RANK = "rank and learning rate"
    BETA = "beta"
    BATCH = "learning rate and batch size"
    ALPHA = "alpha"
    EPOCHS = "epochs"
    REGULARISATION = "regularisation"
    TARGETS = "which layers"
    VARIANT = "variant of LoRA"
    LAYER_RANKS = "layer ranks"
    FINAL = "final"


class TrialState(StrEnum):
    COMPLETE = "complete"
    DIVERGED = "diverged"
    STOPPED = "stopped"


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One set of hyper-parameters with one seed, trained on a stated fraction of the budgeted steps.

    The fraction is that of the training rows: a trial at 0.25 sees the first quarter of one seeded
    shuffle (the same rows for every trial at that fraction) for all its epochs, its schedule annealed to
    zero at its own end.
    """

    hyper_parameters: HyperParameters
    seed: int = 0
    """Seed of the adapter's initial weights, the order of rows and the dropout masks."""
    fraction: float = 1.0
    """Share of the training rows, in (0, 1]."""
    stage: Stage = Stage.RANK
    """The question for which it was asked first; part of its identity only if final (early stopping)."""

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise HyperParameterError(f"fraction must be in (0, 1], got {self.fraction}.")

    @property
    def key(self) -> str:
        """Identity: 16 hex digits of all that changes the result, the same in every process."""
        return _key(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of `to_plain`."""
        return cls(
            hyper_parameters=HyperParameters.from_dict(values["hyper_parameters"]),
            seed=values["seed"],
            fraction=values["fraction"],
            stage=Stage(values["stage"]),
        )


@lru_cache(maxsize=2**14)  # a search is replayed from its start for every request
def _key(trial: Trial) -> str:
    values = trial.hyper_parameters.to_dict()
    names = values.pop("target_modules")
    pattern = sorted(values.pop("rank_pattern", {}).items())
    numbers = {name: float(value) for name, value in values.items()}  # 8 and 8.0 are the same alpha
    facts = [numbers, names, trial.seed, round(trial.fraction, 9), trial.stage is Stage.FINAL]
    facts += [pattern] if pattern else []
    return sha256(dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, slots=True)
class CurvePoint:
    """One reading during training."""

    step: int
    """Optimiser steps done."""
    fraction: float
    """Share of this trial's own steps done, in (0, 1]."""
    train_nll: float
    """Mean training loss since the last reading, nats per supervised token."""
    validation_nll: float
    """NLL on a fixed sample of validation rows, nats per token; a search's trial has its last point on all.

    With early stopping all points are on the sample, so that they compare; the result is on all rows.
    """


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrialResult:
    """What came of a trial."""

    asked: Trial
    """The trial that the strategy asked for."""
    trial: Trial
    """The trial that was run: the same, but for a simulated run that had to take the nearest cell."""
    state: TrialState = TrialState.COMPLETE
    nll: float = inf
    """NLL of the weights handed over, on all validation rows; infinite where the trial diverged."""
    train_nll: float = inf
    """Mean training loss over the last tenth of the steps, nats per supervised token."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Validation value by metric name, `nll` included."""
    curve: tuple[CurvePoint, ...] = ()
    example_nll: npt.NDArray[np.float64] | None = None
    """[validation rows] sum of the NLL over each row's supervised tokens, nats."""
    example_scores: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    """[validation rows] by name: `exact_match` and `accuracy` as 0/1, `prediction` as a label's index."""
    step_nll: npt.NDArray[np.float64] | None = None
    """[steps] mean training NLL of each step's batch, nats; not finite where the step was skipped."""
    gradient_norms: npt.NDArray[np.float64] | None = None
    """[steps] norm of each step's gradient before clipping."""
    trained_tokens: int = 0
    """Real (unpadded) tokens of all its steps."""
    steps: int = 0
    cost: float = 0.0
    """Training and evaluation, in full-run equivalents (`SearchContext.cost`)."""
    seconds: float = 0.0
    """Its share of its packs' wall-clock time."""
    began: float = 0.0
    """When it took its slot, seconds since 1970; 0 where no clock ran."""
    ended: float = 0.0
    """When its result was there, as `began`."""
    message: str = ""
    """Why it diverged or was stopped; empty otherwise."""
    failure: str = ""
    """Why its guard ended it; with early stopping it is still complete, with earlier weights."""

    @property
    def finished(self) -> bool:
        """Whether it reached its end with finite numbers."""
        return self.state is TrialState.COMPLETE
