"""Hook of the site: what a page says of commands and options is read off the command line itself.

`<!-- options of COMMAND -->` becomes a table, `<!-- other commands -->` sections of all that the page does not name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer

from loratune.cli.commands import app

_PLACE = re.compile(r"<!-- options of ([\w ]+) -->")
_REST = "<!-- other commands -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs for each page. Raises `KeyError` for a command that does not exist."""
    if _REST in markdown:
        named = set(_PLACE.findall(markdown))
        rest = [name for name in commands() if name not in named]
        markdown = markdown.replace(
            _REST, "\n\n".join(f"## {each}\n\n<!-- options of {each} -->" for each in rest)
        )
    return _PLACE.sub(lambda place: table_of(place[1]), markdown)


def commands() -> dict[str, Any]:
    """By their names, those of groups as `group command`."""
    return dict(_inside(typer.main.get_group(app), ""))


def _inside(group: Any, before: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        yield f"{before}{name}", command
        if hasattr(command, "commands"):
            yield from _inside(command, f"{before}{name} ")


def table_of(command: str) -> str:
    """What it does, and a line for each argument and option."""
    found = commands()[command]
    lines = [f"| `{_names(each)}` | {_text(each)} |" for each in found.params if each.name != "help"]
    summary = (found.help or "").strip().split("\n\n")[0].replace("\n", " ")
    return "\n".join([summary, "", "| | |", "|---|---|", *lines]) if lines else summary


def _names(parameter: Any) -> str:
    option = parameter.param_type_name == "option"
    return ", ".join(parameter.opts) if option else str(parameter.name).upper()


def _text(parameter: Any) -> str:
    text = str(getattr(parameter, "help", None) or "").replace("|", "\\|").replace("<", "&lt;")
    default = parameter.default
    shown = isinstance(default, str | int | float) and not isinstance(default, bool)
    return f"{text} [{default}]" if shown and "[" not in text else text
