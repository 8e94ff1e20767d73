"""Hook of the site: `<!-- options of COMMAND -->` in a page becomes a table, read off the command line itself."""

from __future__ import annotations

import re
from typing import Any

import typer

from loratune.cli.commands import app

_PLACE = re.compile(r"<!-- options of (\w+) -->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs for each page. Raises `KeyError` for a command that does not exist."""
    return _PLACE.sub(lambda place: table_of(place[1]), markdown)


def table_of(command: str) -> str:
    """What it does, and a line for each argument and option."""
    found = typer.main.get_group(app).commands[command]  # type: ignore[attr-defined]
    lines = [f"| `{_names(each)}` | {_text(each)} |" for each in found.params if each.name != "help"]
    summary = (found.help or "").strip().split("\n\n")[0].replace("\n", " ")
    return "\n".join([summary, "", "| | |", "|---|---|", *lines])


def _names(parameter: Any) -> str:
    option = parameter.param_type_name == "option"
    return ", ".join(parameter.opts) if option else str(parameter.name).upper()


def _text(parameter: Any) -> str:
    text = str(getattr(parameter, "help", None) or "").replace("|", "\\|").replace("<", "&lt;")
    default = parameter.default
    shown = isinstance(default, str | int | float) and not isinstance(default, bool)
    return f"{text} [{default}]" if shown and "[" not in text else text
