"""Turns a frozen dataclass of options into a typer command's signature, so that each option is written once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from loratune.errors import InputError

_LISTS: dict[Any, tuple[Callable[[str], Any], str, str]] = {
    tuple[int, ...]: (int, "whole numbers", "<int,int,…>"),
    tuple[float, ...]: (float, "numbers", "<float,float,…>"),
    tuple[str, ...]: (str, "names", "<name,name,…>"),
}
"""What makes an entry of a list from text, its name in messages and in `--help`, by the list's type."""
_ADVICE: dict[Any, str] = {
    int: "give e.g. 8,16",
    float: "give e.g. 1e-4,3e-4",
    str: "leave it out, or give names",
}
"""What an error advises, by an entry's type."""

_PANELS = ("Data", "Model and device", "Hyper-parameters", "Search", "Output")
"""Their order in `--help`."""


class Command(TyperCommand):
    """A command that names all that is missing at once."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Click's parsing. Raises `InputError` where several options or arguments are missing."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            if type(error).__name__ != "MissingParameter":
                raise
            found, *_ = self.make_parser(ctx).parse_args(args=given)
            missing = [each for each in self.get_params(ctx) if each.required and not found.get(each.name)]
            if len(missing) < 2:
                raise
        names = [each.opts[0] if each.opts[0].startswith("-") else str(each.name).upper() for each in missing]
        raise InputError(f"{' and '.join(names)} are required; see {ctx.command_path} --help.")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _parsed(name: str, hint: Any, value: Any) -> Any:
    """`4,8,16` → (4, 8, 16) where the option is a list (numbers ascending, each once), else the value itself."""
    if texts := _texts(hint):
        return value if value in texts else _number(name, texts, value)
    if hint not in _LISTS:
        return value
    kind, what, _ = _LISTS[hint]
    value = ",".join(value)  # given once or several times
    parts = [part.strip() for part in value.split(",") if part.strip()]
    try:
        entries = tuple(parts) if kind is str else tuple(sorted({kind(part) for part in parts}))
    except ValueError:
        entries = ()
    if not entries:
        raise InputError(
            f"{_flag(name)} must hold {what} separated by commas, got {value!r}; {_ADVICE[kind]}."
        )
    return entries


def _texts(hint: Any) -> tuple[str, ...]:
    """The words that an option takes in place of a number."""
    return tuple(word for each in get_args(hint) if get_origin(each) is Literal for word in get_args(each))


def _number(name: str, texts: tuple[str, ...], value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise InputError(
            f"{_flag(name)} must be a number, such as 3, or {' or '.join(texts)}, got {value!r}."
        ) from None


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
        own_hints = get_type_hints(function, include_extras=True)
        own = [each.replace(annotation=own_hints[each.name]) for each in own]
        ordered = sorted(fields(cls), key=lambda each: _PANELS.index(each.metadata["panel"]))
        generated = [_parameter(each, hints[each.name], each.name in optional) for each in ordered]
        known = {each.name for each in ordered}

        def command(**arguments: Any) -> Any:
            given = {
                name: value for name, value in arguments.items() if name in known and value not in (None, [])
            }
            rest = {name: value for name, value in arguments.items() if name not in known}
            return function(
                values={name: _parsed(name, hints[name], value) for name, value in given.items()}, **rest
            )

        command.__name__, command.__doc__ = function.__name__, function.__doc__
        signature = inspect.Signature([*generated, *own])
        command.__signature__ = signature  # type: ignore[attr-defined]
        command.__annotations__ = {each.name: each.annotation for each in signature.parameters.values()}
        return command

    return decorate


def _parameter(each: Any, hint: Any, optional: bool) -> inspect.Parameter:
    required = each.default is MISSING and not optional
    settings: dict[str, Any] = {
        "help": _help(each, hint, optional),
        "rich_help_panel": each.metadata["panel"],
        "show_default": False,
    }
    if hint in _LISTS:
        kind: Any = list[str]
        settings["metavar"] = _LISTS[hint][2]
    elif texts := _texts(hint):
        kind = str
        settings["metavar"] = f"<float|{'|'.join(texts)}>"
    else:
        kind = next(t for t in (bool, int, float, str) if t in getattr(hint, "__args__", (hint,)))
    if kind is bool:
        settings["metavar"] = ""
    option = typer.Option(_flag(each.name), **settings)
    annotation = Annotated[kind if required else kind | None, option]  # type: ignore[valid-type]
    return inspect.Parameter(
        each.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if required else None,
        annotation=annotation,
    )


def _help(each: Any, hint: Any, optional: bool) -> str:
    """The field's text with its default in the same line; typer would give the default a line of its own."""
    text = str(each.metadata["help"])
    if optional:
        return f"{text} Required, here or in --config."
    if hint is bool or hint in _LISTS or each.default in (None, MISSING):
        return text
    return f"{text} [{each.default}]"
