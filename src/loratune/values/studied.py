"""A task that has been tuned: the facts that the laws see of it, and the optima that were measured."""

from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimum:
    """The best learning rate at one rank, alpha and batch size."""

    r: int
    lora_alpha: float
    batch_size: int
    learning_rate: float
    nll: float
    """At that learning rate, nats per supervised token; not comparable between tasks."""
    inside: bool
    """Whether a worse learning rate was tried on either side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudiedTask:
    """One base model tuned on one dataset. 0 and an empty text: not known."""

    dataset: str
    """A name, or a digest of the rows: equal where the data are."""
    model: str
    family: str = ""
    """transformers' `model_type`."""
    kind: str = ""
    """`TaskKind`."""
    hidden_size: int = 0
    parameters_per_rank: int = 0
    """Of a dense model; no rank law holds for mixtures of experts."""
    rows: float = 0.0
    epochs: float = 1.0
    supervised_tokens: int = 0
    labels: int = 0
    needed_rank: float = 0.0
    """Smallest rank that was found adequate, where it was not read off `optima`."""
    source: str = ""
    optima: tuple[Optimum, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "optima": [asdict(each) for each in self.optima]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of `to_dict`. Raises `TypeError` or `KeyError` for anything else."""
        return cls(**{**values, "optima": tuple(Optimum(**each) for each in values["optima"])})
