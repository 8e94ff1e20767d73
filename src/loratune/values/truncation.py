"""How a trained adapter does when it is cut to lower ranks."""

from dataclasses import dataclass
from enum import StrEnum


class Cut(StrEnum):
    """How the ranks of a cut adapter were chosen, and whether it was trained on."""

    UNIFORM = "one rank for all layers"
    THRESHOLD = "one threshold for all layers"
    HEALED = "one rank for all layers, trained on"


@dataclass(frozen=True, kw_only=True, slots=True)
class CutPoint:
    """One cut adapter against the whole one, on the same validation rows."""

    way: Cut
    rank: int
    """Of every layer; under a threshold the rank that would take as many parameters in all layers alike."""
    parameters: int
    nll: float
    """Nats per supervised token."""
    loss: float
    """What the cut loses against the whole adapter, in nats or points of the metric."""
    interval: tuple[float, float] | None
    """95 %, paired over rows; it says nothing of other seeds."""
    adequate: bool | None
    """Whether the loss is within the margin (one-sided 95 %); False: beyond it; None: undecided."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerSpectrum:
    """Effective ranks of one layer's update (`maths.spectrum`)."""

    module: str
    stable_rank: float
    entropy_rank: float
    energy_rank: int
    """Singular values that hold 90 % of the energy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Truncation:
    """The truncation curve of one adapter."""

    key: str
    """Of its trial."""
    r: int
    learning_rate: float
    nll: float
    """Of the whole adapter on the same rows."""
    rows: int
    """Validation rows that were evaluated."""
    margin: float
    points: tuple[CutPoint, ...]
    layers: tuple[LayerSpectrum, ...]
    cost: float
    """Full-run equivalents."""
    seconds: float

    def curve(self, way: Cut) -> tuple[CutPoint, ...]:
        """Ascending by rank."""
        return tuple(sorted((p for p in self.points if p.way is way), key=lambda point: point.rank))

    @property
    def deployable(self) -> int:
        """The lowest rank that the adapter can be cut to without training on: it and all above are adequate."""
        lowest = self.r
        for point in reversed(self.curve(Cut.UNIFORM)):
            if not point.adequate:
                break
            lowest = point.rank
        return lowest
