"""Subscribers of a command's events: the terminal, Python, and the trackers."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict

import loratune
from loratune.reporting.notebook import Bars, in_notebook
from loratune.reporting.subscribers import JsonLines, Terminal
from loratune.study.ledgers import team_of
from loratune.study.secrets import without_secrets
from loratune.trackers.subscriber import Tracking, flat
from loratune.trackers.tracker import Tracker
from loratune.tuning.options import CommonOptions, TuneOptions
from loratune.values.events import Bus, Phase, PhaseBegan, Started, Tell


@contextmanager
def watching(*, as_json: bool, json_lines: bool = False) -> Iterator[Bus]:
    """A bus with progress on stderr and the plan on stdout.

    With `as_json` stdout is left to the document. With `json_lines` the events are on stdout and nothing else is
    there; with both they are on stderr, in place of the progress.
    """
    if as_json and json_lines:
        yield Bus(JsonLines(sys.stderr))
        return
    with Terminal(quiet=as_json or json_lines, plain=json_lines and sys.stdout.isatty()) as terminal:
        bus = Bus(terminal)
        if json_lines:
            bus.subscribe(JsonLines(sys.stdout))
        yield bus


def begin_loading(
    command: str, options: CommonOptions, tell: Tell, *, directory: str = "", resumed: bool = False
) -> None:
    """Publish that a command begins, and loads model and rows; `directory` is where its results will be."""
    tell(
        Started(
            command=command,
            model=options.model,
            data=options.data,
            directory=directory,
            resumed=resumed,
            version=loratune.__version__,
        )
    )
    tell(PhaseBegan(phase=Phase.LOADING))


@contextmanager
def listening(on_event: Tell | None, progress: bool | None) -> Iterator[Bus]:
    """A bus of subscribers from Python: a function, and progress bars, by default in a notebook alone."""
    bus = Bus() if on_event is None else Bus(on_event)
    if not (in_notebook() if progress is None else progress):
        yield bus
        return
    with Bars() as bars:
        bus.subscribe(bars)
        yield bus


_KEPT_BACK = frozenset(
    {"storage", "ray", "resume", "out", "report_to", "ledger", "no_ledger", "hash_weights", "recalibrate"}
)
"""Options that say nothing of the run, or too much: a storage or a team's ledger may have a password."""


@contextmanager
def tracking(options: TuneOptions, trackers: Mapping[str, Tracker], bus: Bus) -> Iterator[None]:
    """Each tracker receives the events of the bus, all of them by the end, or says why not."""

    def hide(text: str) -> str:
        return without_secrets(without_secrets(text, options.storage), team_of(options.ledger))

    published = {name: value for name, value in asdict(options).items() if name not in _KEPT_BACK}
    config = {
        name: hide(value) if isinstance(value, str) else value for name, value in flat(published).items()
    }
    with ExitStack() as stack:
        for name, tracker in trackers.items():
            bus.subscribe(stack.enter_context(Tracking(name, tracker, config, bus, hide=hide)))
        yield
