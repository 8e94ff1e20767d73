"""Whether options have the types that their dataclass declares, the forms that no type has, and go together.

A file or a caller may give others.
"""

from __future__ import annotations

import re
from dataclasses import MISSING, Field, fields
from math import log10
from reprlib import Repr
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from loratune.costs.budget import Budget
from loratune.errors import InputError, nearest, printable
from loratune.metrics.names import is_built_in
from loratune.values.hyperparameters import VARIANTS

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_TYPES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "unset"}
_LISTS = {str: "a list of names", int: "a list of whole numbers", float: "a list of numbers"}
_SHOWN = Repr()
_SHOWN.maxlevel, _SHOWN.maxstring, _SHOWN.maxother = 2, 80, 80
"""Limits on a value in a message: a file may hold lists of lists of lists."""


def check_types(options: DataclassInstance) -> None:
    """Raise `InputError` for a value of another type, as a file or a caller may give (the command line parses)."""
    hints = get_type_hints(type(options))
    for each_field in fields(options):
        name, hint = each_field.name, hints[each_field.name]
        value = getattr(options, name)
        flag = f"--{name.replace('_', '-')}"
        for each in value if isinstance(value, tuple) else (value,):
            _check_size(flag, each)
            if isinstance(each, str) and not each.strip():
                raise InputError(
                    f"{flag} must be text that is not empty, got {each!r}; {_advice(each_field)}."
                )
        if not _is_of(value, hint):
            plain = list(value) if isinstance(value, tuple) else value
            raise InputError(
                f"{flag} must be {_in_words(hint)}, got {_SHOWN.repr(plain)}; {_advice(each_field)}."
            )


def _advice(option: Field[Any]) -> str:
    """A value that works: the default, which leaving the option out gives."""
    if option.default is MISSING:
        return "leave it out" if option.default_factory is not MISSING else "give a name or a path"
    default = option.default if isinstance(option.default, str | int | float) else None
    return (
        "leave it out"
        if default is None
        else f"leave it out, or give {str(default).lower() if isinstance(default, bool) else default}"
    )


def _check_size(flag: str, value: Any) -> None:
    """Numbers that 64 bits hold, and text that a file can hold: everything later relies on both."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InputError(
            f"{flag} must be a number of at most 18 digits, got one of {int(log10(abs(value))) + 1}; lower it."
        )
    if isinstance(value, str) and ("\0" in value or any("\ud800" <= each <= "\udfff" for each in value)):
        raise InputError(
            f"{flag} must be text in UTF-8 without null characters, got '{printable(value)}'; "
            "rename the file or folder."
        )


def _is_of(value: Any, hint: Any) -> bool:
    if get_origin(hint) in (UnionType, Union):
        return any(_is_of(value, each) for each in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_is_of(each, get_args(hint)[0]) for each in value)
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float if hint is float else hint)


def _in_words(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(get_args(hint))
    if get_origin(hint) in (UnionType, Union):
        return " or ".join(_in_words(each) for each in get_args(hint))
    return _LISTS[get_args(hint)[0]] if get_origin(hint) is tuple else _TYPES[hint]


_DEVICE = re.compile(r"all|workers|cpu|(cuda:)?\d{1,4}")
_ALL_THERE_ARE = {"all", "workers"}
"""Names that stand alone."""


def check_sharding(devices: tuple[str, ...], asked: bool) -> None:
    """Raise `InputError` where a base model is to be spread over one process, or over machines."""
    if asked and len(devices) < 2 and devices != ("all",):
        given = f"got --devices {devices[0]}" if devices else "none are given"
        raise InputError(
            f"--shard-base needs several --devices of this machine, {given}; give for example --devices 0,1."
        )


def check_devices(names: tuple[str, ...], *, cluster: str | None = None) -> None:
    """Raise `InputError` for what names no device; whether it is there is seen when it is taken."""
    if names and cluster is not None:
        raise InputError(
            f"--ray trains on a cluster's GPUs, --devices {','.join(names)} on others; leave one of them out."
        )
    wrong = [name for name in names if not _DEVICE.fullmatch(name)]
    if wrong or (_ALL_THERE_ARE & set(names) and len(names) > 1):
        raise InputError(
            "--devices must be all, GPUs by their numbers such as 0,1, cpu or cpu,cpu, or workers, got "
            f"{','.join(names)!r}; give e.g. --devices all."
        )


def check_proxy(
    proxy: str | None, model: str, *, budget: str, layer_ranks: bool, devices: tuple[str, ...]
) -> None:
    """Raise `InputError` for what does not go with a search on another model."""
    if proxy is None:
        return
    if proxy == model:
        raise InputError(
            f"--proxy must be another model than --model, got {proxy!r} for both; give a smaller one of the "
            "family, or leave --proxy out."
        )
    if Budget.parse(budget).seconds is not None:
        raise InputError(
            f"--budget must be in runs of the proxy with --proxy, got {budget!r}: the larger model's time comes "
            "on top; give e.g. --budget 5x, or leave it out."
        )
    if layer_ranks:
        raise InputError(
            "--layer-ranks names layers of the proxy, which --model does not have; leave it or --proxy out."
        )
    if "workers" in devices:
        raise InputError(
            "--devices workers has one run directory, and --proxy makes two studies; leave one of them out, or "
            "give e.g. --devices all."
        )


def check_variants(variants: tuple[str, ...], compared: tuple[str, ...], strategy: str) -> None:
    """Raise `InputError` for variants that do not exist, or cannot be compared."""
    for flag, names in (("--variants", variants), ("--tune-variants", compared)):
        if unknown := [name for name in names if name not in VARIANTS]:
            raise InputError(
                f"{flag} must be among {', '.join(VARIANTS)}, got {nearest(unknown, VARIANTS)}; give for example "
                f"{flag} rslora."
            )
    if twice := set(variants) & set(compared):
        raise InputError(
            f"--tune-variants and --variants must name different variants, got {min(twice)} in both; leave it out of "
            "one of them."
        )
    if compared and strategy != "evidence":
        raise InputError(
            f"--tune-variants is a stage of --strategy evidence, got {strategy!r}; leave one of them out."
        )


def check_metric(name: str) -> None:
    """Raise `InputError` where there is no such metric; what is not built in is imported."""
    if not is_built_in(name):
        from loratune.metrics import named

        named(name)
