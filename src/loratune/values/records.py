"""What outlives a run: the tuned task, for the next prior, and what repeating its training needs."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, Self

from loratune.values.classifier import Classifier
from loratune.values.hyperparameters import HyperParameters
from loratune.values.profile import PLAIN
from loratune.values.tasks import CAUSAL

_SIGNED = frozenset({"nll"})
"""Fields that may be below 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Carried:
    """What a search on a smaller model of the family, the proxy, found for the larger one."""

    model: str
    """The proxy, as the user named it."""
    directory: str
    """Directory of its run."""
    setting: HyperParameters
    """The learning rate is where the larger model's search begins; the rest is taken as it is."""
    trials: int
    seconds: float
    """Length of its whole run."""
    settled: bool = True
    """Whether its search ended by itself."""

    @property
    def sentence(self) -> str:
        """The sentence for people."""
        cut = "" if self.settled else ", which was cut before it was settled"
        return (
            f"Searched on the smaller {self.model} ({self.trials} trials, {self.directory}){cut}: rank "
            f"{self.setting.r}, alpha {self.setting.lora_alpha:g}, batch size {self.setting.batch_size}, "
            f"{self.setting.epochs:g} epochs, learning rate {self.setting.learning_rate:g}; on the larger model only "
            "learning rates around it are measured."
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimum:
    """The best learning rate at one rank, alpha and batch size."""

    r: int
    lora_alpha: float
    batch_size: int
    learning_rate: float
    nll: float
    """NLL at that learning rate, nats per supervised token; not comparable between tasks."""
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
    """Parameters per rank of a dense model; no rank law holds for mixtures of experts."""
    rows: float = 0.0
    epochs: float = 1.0
    supervised_tokens: int = 0
    labels: int = 0
    needed_rank: float = 0.0
    """Smallest rank that was found adequate, where it was not read off `optima`."""
    weight_format: str = ""
    """How the base model's linear layers were held: `plain`, or `nf4` (4 bits)."""
    source: str = ""
    optima: tuple[Optimum, ...] = ()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of `to_plain`. Raises `TypeError`, `ValueError` or `KeyError` for anything else."""
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


class PromptKind(StrEnum):
    """How a row's prompt became text."""

    VERBATIM = "verbatim"
    """The prompt column as it stands."""
    TEMPLATE = "template"
    """A template with {column} fields."""
    LABEL = "label"
    """TEMPLATE, without spaces at its end, since a label's completion begins with one."""
    CHAT = "chat"
    """The tokenizer's chat template, with the generation prompt."""
    TURNS = "turns"
    """Lines of `User: …` and `Assistant: …`, where the tokenizer has no chat template."""
    TEXT = "text"
    """Plain text to continue."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptFormat:
    """What a model trained on such rows expects before its completion."""

    kind: PromptKind
    template: str = ""
    """Template with {column} fields, braces doubled; empty unless the kind has one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRecord:
    """How a final adapter was trained."""

    model: str
    """The base model as the user gave it."""
    data: str
    """The training data as the user gave it."""
    data_fingerprint: str
    """Changes when the rows of a split, the seed or the length limit change."""
    data_options: Mapping[str, Any] = field(default_factory=dict)
    """How the rows were read and split: the fields of `DataOptions`."""
    prompt: PromptFormat
    dtype: str
    """Type of the base weights, or of what 4-bit ones are unpacked into: `bfloat16`, `float32` or `float64`."""
    seed: int
    """Seed of the adapter's first weights and the order of its rows; the split's is in `data_options`."""
    rows: int
    """Training rows of one epoch, after long texts were split."""
    max_length: int
    """Tokens of the longest row."""
    evaluations: int
    """Number of looks at validation rows that early stopping planned; the best weights were kept."""
    patience: int
    """Evaluations without improvement before it stopped."""
    end_of_turn: str
    """The token that ends a completion, as text."""
    weight_format: str = PLAIN
    """How the base model's linear layers were held: `plain`, or `nf4` (4 bits)."""
    classifier: Classifier | None = None
    """What its head answers; None where completions were learnt."""
    modules_to_save: tuple[str, ...] = ()
    """PEFT's names of what was trained whole beside the matrices: a classifier's head."""
    objective: str = CAUSAL.objective
    """What was learnt: `causal`, `dpo`, `orpo` or `simpo`."""

    @property
    def weights(self) -> str:
        """How the base model was held, in words."""
        return (
            self.dtype
            if self.weight_format == PLAIN
            else f"4 bits ({self.weight_format}), computed in {self.dtype}"
        )
