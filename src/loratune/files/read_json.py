"""JSON of our own files, read back: what was damaged is an error that readers of files expect."""

from __future__ import annotations

from json import loads
from typing import Any

_DIGITS = 19
"""Of the largest integers of 64 bits; nothing that we write has more."""


def parse_json(text: str | bytes) -> Any:
    """The value of a text.

    Raises `ValueError` for what is no JSON, and for what would become an `OverflowError` or a `RecursionError` where it
    is read or used: an integer of more than 64 bits, lists in lists by the thousand.
    """
    try:
        return loads(text, parse_int=_integer)
    except RecursionError:
        raise ValueError("lists or objects in it are nested too deep") from None


def _integer(text: str) -> int:
    digits = len(text.lstrip("-"))
    if digits > _DIGITS:
        raise ValueError(f"an integer in it has {digits} digits")
    return int(text)
