"""What a search would run, before it runs."""

from dataclasses import dataclass
from typing import Any

from loratune.values.trial import Trial


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedStage:
    """One stage of the plan."""

    name: str
    question: str
    trials: int
    cost: float
    """Full-run equivalents."""
    examples: tuple[Trial, ...] = ()
    """The trials as far as they are known now; later stages depend on earlier results."""
    note: str = ""
    packs: int = 0
    """Filled in by the runner, from the memory model."""
    seconds: float = 0.0
    """Predicted; filled in by the runner, from the calibration."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "question": self.question,
            "trials": self.trials,
            "cost": self.cost,
            "note": self.note,
            "packs": self.packs,
            "seconds": self.seconds,
            "examples": [trial.to_dict() for trial in self.examples],
        }


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
