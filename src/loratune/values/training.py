"""What repeating a training run needs beside its hyper-parameters, and how its prompts were written."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Self


class PromptKind(StrEnum):
    """How a row's prompt became text."""

    VERBATIM = "verbatim"
    """The prompt column as it stands."""
    TEMPLATE = "template"
    """A template with {column} fields."""
    LABEL = "label"
    """As TEMPLATE, without spaces at its end, since a label's completion begins with one."""
    CHAT = "chat"
    """The tokenizer's chat template, with the generation prompt."""
    TURNS = "turns"
    """Lines of `User: …` and `Assistant: …`, where the tokenizer has no chat template."""
    TEXT = "text"
    """Plain text that goes on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptFormat:
    """What a model trained on such rows expects before its completion."""

    kind: PromptKind
    template: str = ""
    """With {column} fields, braces doubled; empty unless the kind has one."""

    def to_dict(self) -> dict[str, str]:
        """Plain values for JSON."""
        return {"kind": str(self.kind), "template": self.template}

    @classmethod
    def from_dict(cls, values: Mapping[str, str]) -> Self:
        """Inverse of `to_dict`."""
        return cls(kind=PromptKind(values["kind"]), template=values["template"])


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
    """Of the base weights: `bfloat16`, `float32` or `float64`."""
    seed: int
    """Of the adapter's first weights and the order of its rows; the split's is in `data_options`."""
    rows: int
    """Training rows of one epoch, after long texts were split."""
    max_length: int
    """Tokens of the longest row."""
    evaluations: int
    """Times that early stopping planned to look at validation rows; the best weights were kept."""
    patience: int
    """Looks without improvement before it stopped."""
    end_of_turn: str
    """The token that ends a completion, as text."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "prompt": self.prompt.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`. Raises `KeyError`, `TypeError` or `ValueError` for anything else."""
        return cls(**{**values, "prompt": PromptFormat.from_dict(values["prompt"])})
