"""Draw the report of a finished run again, from its study alone."""

from __future__ import annotations

from pathlib import Path

from loratune.app.options import read_toml
from loratune.app.outcome import write_report
from loratune.app.watch import Quiet, Terminal, Watch
from loratune.errors import OutputError
from loratune.reporting.facts import RunFacts
from loratune.reporting.stored import from_stored
from loratune.study import Study


def report(directory: str | Path) -> Path:
    """Write `report.html` of a finished run again; returns its path. Raises `OutputError` where there is none."""
    return _draw(Path(directory), Quiet())


def _facts(directory: Path) -> RunFacts:
    options = directory / "loratune.toml"
    study = Study.load(directory, storage=read_toml(options).get("storage") if options.exists() else None)
    values = study.get_fact("facts")
    if values is None:
        raise OutputError(
            f"{directory} must hold a finished run, but its search has not ended; tune --resume it."
        )
    return from_stored(values, study.results())


def _draw(directory: Path, watch: Watch) -> Path:
    facts = _facts(directory)
    write_report(facts, directory, watch)
    watch.summary(facts)
    return directory / "report.html"


def report_command(directory: Path) -> None:
    """Write the page and print the summary."""
    _draw(directory, Terminal(as_json=False))
