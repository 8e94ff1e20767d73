"""How far a pack is, for whoever looks on."""

from dataclasses import dataclass

from loratune.values import Trial


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotProgress:
    """One live trial."""

    trial: Trial
    step: int
    total_steps: int
    loss: float
    """Of the last step, nats per supervised token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackProgress:
    """A pack after one step."""

    slots: tuple[SlotProgress, ...]
    tokens: int
    """Real tokens trained in this step."""
    seconds: float
    """Of this step."""
