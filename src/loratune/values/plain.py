"""Frozen dataclasses as values for JSON, and back: one pair of functions for all without a format of their own."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from math import isfinite
from pathlib import PurePath
from typing import Any, TypeVar, cast

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """Dataclasses as dictionaries in the order of their fields, tuples as lists, enumerations as their values.

    A dataclass with a `to_dict` of its own (PEFT's names for hyper-parameters) is written by that. Numbers stay as
    they are, infinite ones too: see `finite`.
    """
    if is_dataclass(value) and not isinstance(value, type):
        own = getattr(value, "to_dict", None)
        return own() if own else {each.name: to_plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {name: to_plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(each) for each in value]
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, PurePath) else value


def from_plain(kind: type[T], values: Any) -> T:
    """Inverse of `to_plain`, types checked. Raises `ValueError` for values that do not make a `kind`."""
    return cast(T, adapter(cast(Hashable, kind)).validate_python(values))


def finite(value: Any) -> Any:
    """JSON values only: mappings and sequences copied, numpy unwrapped, NaN and infinities as None."""
    if isinstance(value, Mapping):
        return {str(name): finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    if hasattr(value, "tolist"):
        return finite(value.tolist())
    return None if isinstance(value, float) and not isfinite(value) else value


@cache
def adapter(kind: Any) -> Any:
    """Pydantic's `TypeAdapter` of a type."""
    from pydantic import TypeAdapter  # takes a while to import, and not every command needs it

    return TypeAdapter(kind)
