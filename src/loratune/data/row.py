"""One row as it was read, and values in words for messages."""

from collections.abc import Mapping
from dataclasses import dataclass
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
