"""Draw the report of a finished run again, from its study alone."""

from __future__ import annotations

from pathlib import Path

from loratune.errors import OutputError
from loratune.files.paths import user_path
from loratune.reporting.facts import RunFacts
from loratune.reporting.stored import from_stored
from loratune.study.record import Study
from loratune.tuning.options import read_toml
from loratune.tuning.outcome import write_report
from loratune.tuning.watch import Quiet, Terminal, Watch


def report(directory: str | Path, *, storage: str | None = None) -> Path:
    """Write `report.html` of a finished run again; returns its path. Raises `OutputError` where there is none.

    `storage` is the URL that `tune` was given; needed only where it has secrets, as those are not written down.
    """
    return _draw(user_path(directory), storage, Quiet())


def _facts(directory: Path, storage: str | None) -> RunFacts:
    options = directory / "loratune.toml"
    if storage is None and options.exists():
        storage = read_toml(options).get("storage")
    study = Study.load(directory, storage=storage)
    values = study.get_fact("facts")
    if values is None:
        raise OutputError(
            f"{directory} must hold a finished run, but its search has not ended; tune --resume it."
        )
    return from_stored(values, study.results())


def _draw(directory: Path, storage: str | None, watch: Watch) -> Path:
    facts = _facts(directory, storage)
    write_report(facts, directory, watch)
    watch.summary(facts)
    return directory / "report.html"


def report_command(directory: Path, storage: str | None = None) -> None:
    """Write the page and print the summary."""
    _draw(user_path(directory), storage, Terminal(as_json=False))
