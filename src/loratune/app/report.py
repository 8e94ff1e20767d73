"""Draw the report of a finished run again, from its study alone."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

from loratune.errors import OutputError
from loratune.files.paths import user_path
from loratune.reporting.documents import to_json, to_markdown
from loratune.reporting.facts import RunFacts, from_stored
from loratune.reporting.screen import Screen
from loratune.reporting.terminal import print_summary
from loratune.study.record import Study
from loratune.tuning.configuration import storage_of
from loratune.tuning.outcome import write_report
from loratune.values.events import Event, Note, Tell, discard


def report(directory: str | Path, *, storage: str | None = None) -> Path:
    """Write `report.html` of a finished run again; returns its path. Raises `OutputError` where there is none.

    `storage` is the URL that `tune` was given; needed only where it has secrets, as those are not written down.
    """
    folder = user_path(directory)
    write_report(facts_of(folder, storage), folder, discard)
    return folder / "report.html"


def print_answer(directory: Path, storage: str | None = None) -> None:
    """The summary of a finished run on one screen. Raises `OutputError` where there is none."""
    _print(facts_of(directory, storage, _warn))


def _print(facts: RunFacts) -> None:
    console = Screen()
    console.print()
    print_summary(console, facts)


def facts_of(directory: Path, storage: str | None = None, tell: Tell = discard) -> RunFacts:
    """The facts of a finished run, from a copy of its study, and a note of what could not be read of it.

    Raises `OutputError` where there is none.
    """
    study = Study.load(directory, storage=storage or storage_of(directory), reading=True)
    results = study.results()
    facts = study.decode_fact("facts", lambda values: from_stored(values, results))
    if facts is None:
        raise OutputError(
            f"{directory} must hold a finished run, but its search has not ended; tune --resume it."
        )
    if study.damaged:
        tell(
            Note(
                text=f"{study.damaged} of {study.damaged + len(results)} trials cannot be read, as their files in "
                f"{directory / 'trials'} are damaged or missing: counts, figures and tables here are without them."
            )
        )
    return replace(facts, directory=str(directory))  # where it is now


def report_command(
    directory: Path, storage: str | None = None, form: Literal["html", "markdown", "json"] = "html"
) -> None:
    """Write the page and print the summary; Markdown and JSON are printed instead."""
    folder = user_path(directory)
    facts = facts_of(folder, storage, _warn)
    if form != "html":
        print(to_json(facts) if form == "json" else to_markdown(facts), end="")
        return
    write_report(facts, folder, _warn)
    _print(facts)


def _warn(event: Event) -> None:
    if isinstance(event, Note):
        print(event.text, file=sys.stderr)
