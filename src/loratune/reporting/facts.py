"""Everything that a renderer may show of a run, as plain values and as JSON: no live study, model or files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from math import inf
from typing import Any, Self, get_type_hints

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

from loratune.maths.noninferiority import SeedNoise
from loratune.metrics import NLL, Metric, MetricInfo, Rows, info_of, metrics
from loratune.values import (
    Carried,
    DataProfile,
    Decision,
    HyperParameters,
    SearchPlan,
    TrainingRecord,
    TrialResult,
    Truncation,
)
from loratune.values.analysis import Diagnosis, HeldOut, Sensitivity

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
    """Positive is better, in the metric's unit: nats saved, points (hundredths) gained, or its own."""
    interval: tuple[float, float] | None = None
    """95 %, paired over the rows of the split; it says nothing of other seeds."""
    measured: MetricInfo | None = None
    """The metric's, where it is not built in; None in runs of earlier versions."""

    @property
    def info(self) -> MetricInfo:
        """The metric's description."""
        return info_of(self.metric, self.measured)

    @classmethod
    def from_rows(
        cls, ours: Floats, theirs: Floats, *, over: str, split: str, metric: Metric, rows: Rows
    ) -> Self:
        """Paired over rows; `ours` and `theirs` [rows] are what each row scores."""
        this_pair = SeedNoise(variance=0.0, degrees=inf)
        loss = metric.compare(ours[None], theirs[None], rows, this_pair, 0.0)
        low, high = loss.interval or (inf, -inf)
        # from zero, as a minus would make -0 of it
        return cls(
            over=over,
            split=split,
            metric=metric.name,
            value=0.0 - loss.difference,
            interval=(0.0 - high, 0.0 - low),
            measured=metric.info,
        )


@dataclass(frozen=True, slots=True)
class PackSpan:
    """A stretch of the run in which about this number of trials trained side by side."""

    began: float
    """Seconds since the start."""
    ended: float
    trials: float
    stage: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RunCost:
    """What the run took, beside what was predicted."""

    seconds: float
    """Wall clock until the report was drawn, earlier parts of a resumed run included."""
    predicted_seconds: float
    predicted_bytes: int = 0
    """Peak memory by the memory model."""
    measured_bytes: int = 0
    sequential_seconds: float | None = None
    """Estimate for the same trials one after another; None where it is not known."""
    timeline: tuple[tuple[str, float], ...] = ()
    """(part of the run, seconds), which sum to the wall clock; empty where an earlier version ran."""
    price_per_hour: float = 0.0
    """Price of the machine, in the user's currency; 0 where it is not known."""
    mean_trials_in_pack: float = 0.0
    """Mean over the search, weighted by the seconds of its steps."""
    packs: tuple[PackSpan, ...] = ()
    """Packs in the order in which they came; empty where an earlier version ran."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RunFacts:
    """A run as it stands when its results are written."""

    model: str
    data: str
    directory: str
    strategy: str
    metric: str
    margin: float
    """Margin in the metric's unit."""
    budget: str
    """The budget that the user gave."""
    seed: int
    profile: DataProfile
    parameters_per_rank: int
    """LoRA parameters at rank 1 over the targets that the search started from."""
    adapter_parameters: int
    """Parameters of the recommended adapter."""
    plan: SearchPlan
    results: tuple[TrialResult, ...]
    """All trials, the final ones included."""
    decision: Decision
    recommended: ModelScores
    default_recipe: ModelScores
    base_model: ModelScores
    cost: RunCost
    gains: tuple[Gain, ...] = ()
    fair_gains: tuple[Gain, ...] | None = None
    """Over the best of four learning rates at rank 16; None in runs of earlier versions."""
    validation_weights: Floats | None = None
    """[validation rows] supervised tokens; for intervals over rows where a setting has one seed."""
    truncation: Truncation | None = None
    """How the largest adapter of the search does when it is cut to lower ranks."""
    diagnoses: tuple[Diagnosis, ...] | None = None
    """Signs of trouble that were found; None where the run was not examined."""
    sensitivity: Sensitivity | None = None
    """What mattered; None where it was not looked at."""
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    cut_by_clock: bool = False
    """Whether the search ended before it was settled, by the clock or by the user."""
    stopped: bool = False
    """Whether it was the user."""
    optimised: MetricInfo | None = None
    """The metric's, where it is not built in; None in runs of earlier versions."""
    training: TrainingRecord | None = None
    """What repeating the final run needs; None in studies of earlier versions."""
    held_out: HeldOut | None = None
    """Rows of the test split; None in studies of earlier versions."""
    proxy: Carried | None = None
    """What was found on a smaller model and carried; None where the search ran on this one."""

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
        if not self.info(self.metric).by_nll:
            return self.metric
        measured = {name for result in self.results for name in result.metrics} | set(
            self.recommended.validation
        )
        shown = (each.name for each in self.shown_metrics if not each.by_nll and each.name in measured)
        return next(shown, "")

    def info(self, metric: str) -> MetricInfo:
        """A metric's description, also of one whose code is not available."""
        return info_of(metric, self.optimised)

    @property
    def shown_metrics(self) -> tuple[MetricInfo, ...]:
        """Metrics that may be shown: those built in, and the chosen one; for a head's answers none of text."""
        head = self.training is not None and self.training.classifier is not None
        built_in = tuple(each.info for each in metrics() if not (head and each.info.of_tokens))
        own = self.info(self.metric)
        return built_in if any(each.name == own.name for each in built_in) else (*built_in, own)

    @property
    def margin_in_nats(self) -> float:
        """The run's margin where it is in nats, else the NLL's."""
        return self.margin if self.info(self.metric).by_nll else NLL.info.margin


_ARRAYS = ("results", "validation_weights")
"""Fields that are kept elsewhere (the trials) or as plain lists."""


def to_stored(facts: RunFacts) -> dict[str, Any]:
    """Everything but the trials, which the study keeps."""
    adapters = _adapters()
    values = {name: each.dump_python(getattr(facts, name), mode="json") for name, each in adapters.items()}
    weights = facts.validation_weights
    return {**values, "validation_weights": None if weights is None else weights.tolist()}


def from_stored(values: Mapping[str, Any], results: Sequence[TrialResult]) -> RunFacts:
    """Inverse of `to_stored`; `results` are the study's."""
    decoded = {
        name: each.validate_python(values[name]) for name, each in _adapters().items() if name in values
    }
    weights = values["validation_weights"]
    return RunFacts(
        **decoded,
        results=tuple(results),
        validation_weights=None if weights is None else np.asarray(weights, np.float64),
    )


def _adapters() -> dict[str, TypeAdapter[Any]]:
    hints = get_type_hints(RunFacts)
    return {each.name: TypeAdapter(hints[each.name]) for each in fields(RunFacts) if each.name not in _ARRAYS}
