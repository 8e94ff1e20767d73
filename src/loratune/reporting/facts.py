"""Everything that a renderer may tell about a run, as plain values: no live study, no model, no files."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from loratune.maths.noninferiority import SeedNoise, compare_nll, compare_scores
from loratune.values import (
    METRICS,
    DataProfile,
    Decision,
    HyperParameters,
    SearchPlan,
    TrainingRecord,
    TrialResult,
    Truncation,
)
from loratune.values.diagnosis import Diagnosis
from loratune.values.sensitivity import Sensitivity

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelScores:
    """Metrics of one model on the two held-out splits, by metric name."""

    validation: Mapping[str, float] = field(default_factory=dict)
    test: Mapping[str, float] = field(default_factory=dict)
    """Empty where the run had no test split."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gain:
    """What the recommended adapter gains over another model on one split."""

    over: str
    """`base model` or `default recipe`."""
    split: str
    """`validation` or `test`."""
    metric: str
    value: float
    """Positive is better: nats saved for `nll`, points (hundredths) for the others."""
    interval: tuple[float, float] | None = None
    """95 %, paired over the rows of the split; it says nothing of other seeds."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "over": self.over,
            "split": self.split,
            "metric": self.metric,
            "value": self.value,
            "interval": None if self.interval is None else list(self.interval),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of `to_dict`."""
        interval = values["interval"]
        return cls(**{**values, "interval": None if interval is None else (interval[0], interval[1])})

    @classmethod
    def from_rows(
        cls, ours: Floats, theirs: Floats, *, over: str, split: str, metric: str, weights: Floats
    ) -> Self:
        """Paired over rows.

        Args:
            ours, theirs: [rows] summed NLL of each row (nats) for `nll`, scores in [0, 1] otherwise.
            weights: [rows] supervised tokens.
        """
        this_pair = SeedNoise(variance=0.0, degrees=inf)
        if metric == "nll":
            loss = compare_nll(ours[None], theirs[None], weights, this_pair, 0.0)
        else:
            loss = compare_scores(ours[None], theirs[None], this_pair, 0.0)
        low, high = loss.interval or (inf, -inf)
        # from zero, as a minus would make -0 of it
        return cls(
            over=over,
            split=split,
            metric=metric,
            value=0.0 - loss.difference,
            interval=(0.0 - high, 0.0 - low),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RunCost:
    """What the run took, beside what was predicted."""

    seconds: float
    """Wall clock up to `result.json`, earlier parts of a resumed run included."""
    predicted_seconds: float
    predicted_bytes: int = 0
    """Peak memory by the memory model."""
    measured_bytes: int = 0
    sequential_seconds: float | None = None
    """Estimate for the same trials one after another; None where it is not known."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RunFacts:
    """A run as it stands when its results are written."""

    model: str
    data: str
    directory: str
    strategy: str
    metric: str
    margin: float
    """Nats per supervised token, or points of the metric."""
    budget: str
    """As the user gave it."""
    seed: int
    profile: DataProfile
    parameters_per_rank: int
    """LoRA parameters at rank 1 over the targets that the search started from."""
    adapter_parameters: int
    """Of the recommended adapter."""
    plan: SearchPlan
    results: tuple[TrialResult, ...]
    """All trials, the final ones included."""
    decision: Decision
    recommended: ModelScores
    default_recipe: ModelScores
    base_model: ModelScores
    cost: RunCost
    gains: tuple[Gain, ...] = ()
    validation_weights: Floats | None = None
    """[validation rows] supervised tokens; for intervals over rows where a setting has one seed."""
    truncation: Truncation | None = None
    """How the largest adapter of the search does when it is cut to lower ranks."""
    diagnoses: tuple[Diagnosis, ...] | None = None
    """Signs of trouble that were found; None where nobody looked."""
    sensitivity: Sensitivity | None = None
    """What mattered; None where it was not looked at."""
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    cut_by_clock: bool = False
    training: TrainingRecord | None = None
    """What repeating the final run needs; None in studies of earlier versions."""

    def is_recommended(self, values: HyperParameters) -> bool:
        """Whether a trial had the recommended values; the modules may be named differently there."""
        ours = self.decision.hyper_parameters
        return replace(values, target_modules=ours.target_modules) == ours

    @property
    def trained_tokens(self) -> int:
        return sum(result.trained_tokens for result in self.results)

    @property
    def shown_metric(self) -> str:
        """The task metric worth showing beside the NLL: the chosen one, else the first that was measured."""
        if self.metric not in ("nll", "perplexity"):
            return self.metric
        measured = {name for result in self.results for name in result.metrics} | set(
            self.recommended.validation
        )
        return next((name for name, larger in METRICS.items() if larger and name in measured), "")
