"""Turns a frozen dataclass of options into a typer command's signature, so that each option is written once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Annotated, Any, get_type_hints

import typer

from loratune.errors import InputError


def whole_numbers(text: str) -> tuple[int, ...]:
    """`4,8,16` → (4, 8, 16)."""
    return _numbers(text, int, "whole numbers")


def real_numbers(text: str) -> tuple[float, ...]:
    """`1e-4,3e-4` → (0.0001, 0.0003)."""
    return _numbers(text, float, "numbers")


def names(text: str) -> tuple[str, ...]:
    """`q_proj,v_proj` → ('q_proj', 'v_proj')."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _numbers(text: str, kind: Callable[[str], Any], what: str) -> tuple[Any, ...]:
    try:
        return tuple(sorted({kind(part) for part in text.split(",") if part.strip()}))
    except ValueError:
        raise InputError(
            f"A list option must hold {what} separated by commas, got {text!r}; correct it."
        ) from None


def _as_it_is(value: Any) -> Any:
    return value


_PARSERS: dict[Any, Callable[[Any], Any]] = {
    tuple[int, ...]: whole_numbers,
    tuple[float, ...]: real_numbers,
    tuple[str, ...]: names,
}


def options_of(
    cls: type[Any], *, optional: frozenset[str] = frozenset()
) -> Callable[[Callable[..., Any]], Any]:
    """Decorator: the function's `values` argument becomes one typer option per field of `cls`.

    Only options that the user gave are in `values` (the others keep the dataclass's defaults, or those of
    a configuration file). Fields in `optional` are not required on the command line.
    """
    hints = get_type_hints(cls)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        own = [p for p in inspect.signature(function).parameters.values() if p.name != "values"]
        generated = [_parameter(each, hints[each.name], each.name in optional) for each in fields(cls)]
        parsers = {each.name: _PARSERS.get(hints[each.name], _as_it_is) for each in fields(cls)}

        def command(**arguments: Any) -> Any:
            values = {k: parsers[k](v) for k, v in arguments.items() if k in parsers and v is not None}
            rest = {k: v for k, v in arguments.items() if k not in parsers}
            return function(values=values, **rest)

        command.__name__, command.__doc__ = function.__name__, function.__doc__
        signature = inspect.Signature([*generated, *own])
        own_hints = get_type_hints(function, include_extras=True)
        command.__signature__ = signature  # type: ignore[attr-defined]
        command.__annotations__ = {
            p.name: own_hints.get(p.name, p.annotation) for p in signature.parameters.values()
        }
        return command

    return decorate


def _parameter(each: Any, hint: Any, optional: bool) -> inspect.Parameter:
    required = each.default is MISSING and not optional
    flag = f"--{each.name.replace('_', '-')}"
    settings: dict[str, Any] = {"help": each.metadata["help"], "rich_help_panel": each.metadata["panel"]}
    if hint is bool:
        kind: Any = bool
        settings["show_default"] = False
    elif hint in _PARSERS:
        kind = str
        settings["metavar"] = "A,B,…"
    else:
        kind = next(t for t in (int, float, str) if t in getattr(hint, "__args__", (hint,)))
    shown = each.default
    if not required and hint is not bool and hint not in _PARSERS and shown not in (None, MISSING):
        settings["show_default"] = str(shown)
    annotation = Annotated[kind if required else kind | None, typer.Option(flag, **settings)]  # type: ignore[valid-type]
    return inspect.Parameter(
        each.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if required else None,
        annotation=annotation,
    )
