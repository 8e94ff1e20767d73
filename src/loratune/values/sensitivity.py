"""What mattered in one study: how much each hyper-parameter moved the loss, the memory and the time."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Impact:
    """One hyper-parameter that was tried at several values."""

    name: str
    """As in `HyperParameters`; alpha as `lora_alpha / r`."""
    tried: tuple[float, ...]
    """Ascending, on as many rows as the effect is from."""
    effect: float | None
    """NLL of the worst value minus that of the best, in nats, each at the best learning rate tried with it and
    all else as recommended; None where no two values can be compared so."""
    effect_interval: tuple[float, float] | None = None
    """95 %, over rows and seeds, for whichever two of the values differ most; None where too little was repeated."""
    effect_rows: float = 1.0
    """Share of the training rows of the trials that the effect is from: the learning rate's may be from a part."""
    share: float | None = None
    """Of the variance of validation NLL, by this hyper-parameter alone; None where trials are too few."""
    share_interval: tuple[float, float] | None = None
    """95 %, trials resampled."""
    memory_bytes: int = 0
    """Predicted peak of one trial at the largest value minus that at the smallest, all else as recommended."""
    time_factor: float = 1.0
    """Predicted time of one trial alone at the largest value over that at the smallest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sensitivity:
    """The table of impacts, largest first."""

    impacts: tuple[Impact, ...]
    trials: int
    """On all rows with the same targets and epochs; diverged ones included."""
    wanted_trials: int
    """From which on shares of the variance are computed."""
    interactions: float | None = None
    """Share of the variance that no hyper-parameter explains alone: interactions and noise."""
    noise: float | None = None
    """Share of the variance that is between seeds of the same setting, from repeated trials."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)
