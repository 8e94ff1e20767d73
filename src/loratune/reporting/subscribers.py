"""What a person at a terminal sees of a command: progress on stderr, the plan on stdout."""

from __future__ import annotations

import sys
from collections.abc import Callable
from threading import Event as Flag
from threading import Thread
from time import monotonic
from typing import Any, Self, TextIO

from rich.console import Console

from loratune.reporting.live import LiveView
from loratune.reporting.screen import Screen
from loratune.reporting.terminal import print_plan, print_profile
from loratune.values.events import Event, Planned, Progress, json_line

BEAT_SECONDS = 1.0
"""Time between two checks for a due line where there is no terminal."""
PROGRESS_SECONDS = 1.0
"""Least time between two lines of progress: other events are never left out."""


class Terminal(LiveView):
    """The live view, and the plan on stdout unless that is for a document."""

    def __init__(self, *, quiet: bool = False, plain: bool = False) -> None:
        """`quiet`: nothing on stdout. `plain`: no view that moves, as others print on the same terminal."""
        super().__init__(plain=plain)
        self._out = None if quiet else Screen()
        self._left_alone = Flag()
        self._beats = Thread(target=self._beat_on, name="progress", daemon=True)

    def __enter__(self) -> Self:
        super().__enter__()
        if self.plain:
            self._beats.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._left_alone.set()
        if self._beats.is_alive():
            self._beats.join()
        super().__exit__(*error)

    def _beat_on(self) -> None:
        """Loading, calibrating and scoring have no events of steps, and may take minutes."""
        while not self._left_alone.wait(BEAT_SECONDS):
            self.beat()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        super().__call__(event)
        if not isinstance(event, Planned):
            return
        if self._out is None:
            for note in event.data_notes:
                self._say(note)
            return
        with self.paused():
            print_planned(self._out, event)


def print_planned(out: Console, planned: Planned) -> None:
    print_profile(out, planned.data, planned.model)
    for note in planned.data_notes:
        out.print(f"– {note}", markup=False, highlight=False)
    out.print()
    print_plan(
        out,
        planned.plan,
        final_seconds=planned.final_seconds - planned.after_seconds,
        slots=planned.slots,
        peak_bytes=planned.peak_bytes,
        memory_bytes=planned.memory_bytes,
        price_per_hour=planned.price_per_hour,
        devices=planned.devices,
    )
    for note in planned.notes:
        out.print(f"– {note}", markup=False, highlight=False)


class JsonLines:
    """Writes each event as one JSON object a line, with `time` (seconds since 1970), and flushes it.

    Progress comes once a second at most.
    """

    def __init__(self, file: TextIO | None = None, *, clock: Callable[[], float] = monotonic) -> None:
        self._file = sys.stdout if file is None else file
        self._clock = clock
        self._last = -PROGRESS_SECONDS

    def __call__(self, event: Event) -> None:
        """Write one event."""
        if isinstance(event, Progress):
            now = self._clock()
            if now - self._last < PROGRESS_SECONDS:
                return
            self._last = now
        self._file.write(json_line(event))
        self._file.flush()
