"""Subscribers of a command's events: at the command line, or from Python."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from loratune.reporting.bars import Bars, in_notebook
from loratune.reporting.subscribers import JsonLines, Terminal
from loratune.values.events import Bus, Tell


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
