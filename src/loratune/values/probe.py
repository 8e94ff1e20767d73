"""What a minute or two of measuring on the base model found."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseScale:
    """Gradient noise scale tr(Σ)/|G|², in rows."""

    rows: float
    """Infinite where the gradient's mean cannot be told from zero."""
    low: float
    high: float
    """Ends of a 90 % interval."""
    steps: int
    """Steps over which the two means were taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RateTest:
    """Short runs at several learning rates, each annealed to its end."""

    r: int
    lora_alpha: float
    batch_size: int
    rows: int
    """Training rows of each run, seen once."""
    tried: tuple[tuple[float, float], ...]
    """(learning rate, NLL afterwards; infinite where it diverged), ascending."""
    best: float
    inside: bool
    """Whether a worse learning rate was tried on either side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Absorbed:
    """Prequential code length: what a first pass saved against the base model."""

    bits: float
    """Σ (base NLL - online NLL) / ln 2 over the rows; each row is read before it is learnt."""
    rows: int
    supervised_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """The parts that were measured; None where time did not suffice."""

    seconds: float
    noise: NoiseScale | None = None
    rate: RateTest | None = None
    absorbed: Absorbed | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the reader replaces infinities."""
        return asdict(self)
