"""What a search concluded, and on what grounds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loratune.values.hyperparameters import HyperParameters


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

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "claim": self.claim,
            "value": self.value,
            "unit": self.unit,
            "interval": list(self.interval) if self.interval else None,
            "margin": self.margin,
            "holds": self.holds,
        }


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

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "question": self.question,
            "answer": self.answer,
            "trials": self.trials,
            "diverged": self.diverged,
            "cost": self.cost,
            "seconds": self.seconds,
            "details": dict(self.details),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """The hyper-parameters that a strategy recommends, and why."""

    hyper_parameters: HyperParameters
    evidence: tuple[Evidence, ...] = ()
    stages: tuple[StageSummary, ...] = ()
    settled: bool = False
    """Whether the search has nothing more to ask (otherwise: the best guess so far)."""
