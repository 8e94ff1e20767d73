"""A row as text: what is given, what is to be learnt, where turns end. Knows neither columns nor tokens."""

from dataclasses import dataclass
from enum import Enum, auto


class End(Enum):
    """What to do about the end-of-turn token of a piece of text."""

    NONE = auto()
    APPEND = auto()
    """Append it, unless the text ends with it already."""
    FIND = auto()
    """The chat template writes it: learn up to the first one (without one: everything)."""
    DEMAND = auto()
    """As FIND, but a text without one is an error: the piece reaches beyond the turn."""


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
    begins: bool = True
    """Whether the tokenizer's beginning-of-text token is put in front (a chat template writes its own)."""
