"""What the final models say to single test rows: a few to be read, and the classes of all."""

from dataclasses import dataclass
from enum import StrEnum


class Change(StrEnum):
    """What training did to a row."""

    BETTER = "better"
    WORSE = "worse"
    STILL_WRONG = "still wrong"
    STILL_RIGHT = "still right"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What one model makes of a row."""

    nll: float
    """Nats per supervised token."""
    right: bool
    """Whether its most likely label, or without labels its most likely text of that length, is the true one."""
    answer: str = ""
    """Its most likely label; empty where rows have none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExampleRow:
    """A test row as text, cut where it is long."""

    change: Change
    prompt: str
    expected: str
    recommended: Reading
    base: Reading


@dataclass(frozen=True, kw_only=True, slots=True)
class Confusion:
    """Rows of one class that were taken for one class; indices into the profile's labels."""

    true: int
    predicted: int
    rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """Of the recommended adapter and the base model, on the test rows."""

    examples: tuple[ExampleRow, ...] = ()
    counts: tuple[tuple[Change, int], ...] = ()
    """All test rows by what training did to them."""
    recommended: tuple[Confusion, ...] = ()
    """Every pair of classes that came; empty where rows have no labels."""
    base: tuple[Confusion, ...] = ()
