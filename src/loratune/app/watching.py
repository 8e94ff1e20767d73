"""Who looks on while a command works at the command line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from loratune.reporting.subscribers import JsonLines, Terminal
from loratune.values.events import Bus


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
