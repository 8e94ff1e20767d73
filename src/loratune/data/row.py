"""A row as it was read, and as text: what is given, what is to be learnt. Knows neither columns nor tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it was read."""

    values: Mapping[str, Any]
    place: str
    """Where it stands, for messages: `train.jsonl:17` (line) or `train.parquet, row 17`."""


def first_line(error: BaseException) -> str:
    """What a third-party error says, in one line without its full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def kind_of(value: object) -> str:
    """A value in words, for messages."""
    if value is None:
        return "null"
    names = {"str": "text", "dict": "an object", "list": "a list", "int": "a number", "float": "a number"}
    name = names.get(type(value).__name__, type(value).__name__)
    return f"{name} ({value!r:.40})" if name in ("text", "a number", "bool") else name


class End(Enum):
    """What to do about the end-of-turn token of a piece of text."""

    NONE = auto()
    APPEND = auto()
    """Append it, unless the text ends with it already."""
    FIND = auto()
    """The chat template writes it: learn up to the first one (without one: everything)."""
    DEMAND = auto()
    """FIND, but a text without one is an error: the piece reaches beyond the turn."""


class Overflow(Enum):
    """What to do with a row that is longer than the limit."""

    CUT_PROMPT = auto()
    """Shorten what is given from its start; leave the row out where the completion alone does not fit."""
    LEAVE_OUT = auto()
    SPLIT = auto()
    """Several rows, each token learnt once."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a row, tokenised on its own."""

    text: str
    learned: bool = False
    end: End = End.NONE


@dataclass(frozen=True, slots=True)
class Example:
    """A row as text."""

    segments: tuple[Segment, ...]
    identity: str
    """What makes two rows exact duplicates."""
    place: str
    label: str | None = None
    answer: float | tuple[str, ...] | None = None
    """What a classifier is to give it, where that is not one label: several labels, or a number."""
    begins: bool = True
    """Whether the tokenizer's beginning-of-text token is put in front (a chat template writes its own)."""
    rejected: tuple[Segment, ...] = ()
    """The answer that `segments` is preferred to, with the same prompt; empty where rows are no pairs."""

    @property
    def rows(self) -> tuple[tuple[Segment, ...], ...]:
        """What becomes rows of its own: a pair's answers are two."""
        return (self.segments, self.rejected) if self.rejected else (self.segments,)
