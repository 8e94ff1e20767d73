"""`events.jsonl` of a run directory: everything that happened, one JSON object a line, appended as it happens.

A live page is built from it. A resumed run appends to it; one that was killed may have left half a line.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Self

from loratune.files.read_json import parse_json
from loratune.values.events import Event, Progress, event_from, json_line

FILE = "events.jsonl"
PROGRESS_SECONDS = 2.0
"""Least time between two lines of progress."""


class EventLog:
    """A subscriber that keeps events in memory until a run directory is there, then writes it.

    Every line is handed to the system at once, so that a killed process has left all of it. A disk that is full
    ends the log, not the run.
    """

    def __init__(self, *, clock: Callable[[], float] = monotonic) -> None:
        self._waiting: list[str] | None = []
        self._file: FileIO | None = None
        self._clock = clock
        self._last = -PROGRESS_SECONDS

    def open(self, directory: Path) -> None:
        """Append to the log of this directory, from here on and what came before."""
        waiting, self._waiting = self._waiting or [], None
        try:
            directory.mkdir(parents=True, exist_ok=True)
            path = directory / FILE
            cut_off = _is_cut_off(path)
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            self._file = FileIO(descriptor, "ab")
        except OSError:
            return
        self._write(("\n" if cut_off else "") + "".join(waiting))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def __call__(self, event: Event) -> None:
        """Write one event; progress not more often than every other second."""
        if isinstance(event, Progress):
            now = self._clock()
            if now - self._last < PROGRESS_SECONDS:
                return
            self._last = now
        if self._waiting is not None:
            self._waiting.append(json_line(event))
        else:
            self._write(json_line(event))

    def _write(self, text: str) -> None:
        if self._file is None:
            return
        data = text.encode()
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError:
            self._close()

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                file.close()


def _is_cut_off(path: Path) -> bool:
    """Whether the last line has no end."""
    if not path.exists() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) != b"\n"


class EventTail:
    """The events of a run directory as they come, each with its time; reads only, and only what is new."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE
        self._file = 0
        self._place = 0

    def new(self) -> tuple[bool, list[tuple[float, Event]]]:
        """Whether it is another file than before, to be read from its start, and what came since.

        Half a line waits for its end; a line that is no event is passed over. Raises `OSError` as files do.
        """
        with self._path.open("rb") as file:
            facts = os.fstat(file.fileno())
            other = facts.st_ino != self._file or facts.st_size < self._place
            self._file, self._place = facts.st_ino, 0 if other else self._place
            file.seek(self._place)
            whole, end, _ = file.read().rpartition(b"\n")
        self._place += len(whole) + len(end)
        return other, [found for line in whole.splitlines() if (found := _event(line)) is not None]


def _event(line: bytes) -> tuple[float, Event] | None:
    try:
        values = parse_json(line)
        event = event_from(values)
        return None if event is None else (float(values["time"]), event)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
