"""What a search would run, before it runs; what it concluded, and on what grounds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loratune.values.hyperparameters import HyperParameters
from loratune.values.trial import Trial


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedStage:
    """One stage of the plan."""

    name: str
    question: str
    trials: int
    cost: float
    """Full-run equivalents."""
    note: str = ""
    packs: int = 0
    """Filled in by the runner, from the memory model."""
    seconds: float = 0.0
    """Predicted; filled in by the runner, from the calibration."""
    examples: tuple[Trial, ...] = ()
    """The trials as far as they are known now; later stages depend on earlier results."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchPlan:
    """The stages, and what the budget made the strategy leave out."""

    stages: tuple[PlannedStage, ...]
    dropped: tuple[str, ...] = ()
    """One sentence per reduction, in the order in which they were made."""

    @property
    def cost(self) -> float:
        """Full-run equivalents of all stages."""
        return sum(stage.cost for stage in self.stages)

    @property
    def trials(self) -> int:
        return sum(stage.trials for stage in self.stages)


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """A claim, its number, its interval, whether it holds."""

    claim: str
    """One sentence in the report's words."""
    value: float | None = None
    unit: str = ""
    interval: tuple[float, float] | None = None
    """95 % two-sided, or the one-sided bound with an infinite other end."""
    margin: float | None = None
    holds: bool | None = None
    """None for a note, such as a stage that was dropped for the budget."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSummary:
    """One stage as it went: an entry of `stages` in `result.json`."""

    name: str
    question: str
    answer: str
    trials: int = 0
    diverged: int = 0
    cost: float = 0.0
    """Full-run equivalents."""
    seconds: float = 0.0
    details: Mapping[str, Any] = field(default_factory=dict)
    """JSON-able numbers behind the answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """The hyper-parameters that a strategy recommends, and why."""

    hyper_parameters: HyperParameters
    evidence: tuple[Evidence, ...] = ()
    stages: tuple[StageSummary, ...] = ()
    settled: bool = False
    """Whether the search has nothing more to ask (otherwise: the best guess so far)."""
