"""A task that has been tuned: the facts that the laws see of it, and the optima that were measured."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Self

_SIGNED = frozenset({"nll"})
"""Fields that may be below 0."""


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
        """Inverse of `to_dict`. Raises `TypeError`, `ValueError` or `KeyError` for anything else."""
        optima = tuple(Optimum(**each) for each in values["optima"])
        for each in optima:
            _check(each)
            if not all(
                number > 0 for number in (each.r, each.lora_alpha, each.batch_size, each.learning_rate)
            ):
                raise ValueError(f"rank, alpha, batch size and learning rate must be above 0, got {each}")
        task = cls(**{**values, "optima": optima})
        _check(task)
        return task


def _check(values: Any) -> None:
    """Types as declared, numbers finite and none but an NLL below 0: the laws take logarithms of them."""
    for each in fields(values):
        value = getattr(values, each.name)
        if each.type in (int, float):
            kinds = int if each.type is int else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds):
                raise TypeError(f"{each.name} must be a number, got {value!r}")
            if not -(2**63) < value < 2**63 or (value < 0 and each.name not in _SIGNED):
                raise ValueError(f"{each.name} must be a number of a study, got {value!r}")
        elif each.type in (str, bool) and not isinstance(value, each.type):
            raise TypeError(f"{each.name} must be of type {each.type.__name__}, got {value!r}")
