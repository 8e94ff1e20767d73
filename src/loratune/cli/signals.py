"""SIGTERM and SIGHUP end a command as Ctrl-C does: what is finished is kept, temporary folders go, it can go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from loratune.errors import Stop

STOPPING = (signal.SIGTERM, signal.SIGHUP)


class Received:
    """Which signal came first."""

    number: int = signal.SIGINT

    @property
    def exit_code(self) -> int:
        """What a shell expects of a command that a signal has ended."""
        return 128 + self.number


@contextmanager
def stoppable() -> Iterator[Received]:
    """Raise `Stop` in the main thread at the first of these signals; later ones do not disturb its cleaning up.

    A signal that whoever started the command has told it to ignore (`nohup`) stays ignored.
    """
    received = Received()
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def stop(number: int, frame: FrameType | None) -> None:
        received.number = number
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise Stop(number)

    before: dict[signal.Signals, Any] = {
        each: signal.getsignal(each) for each in STOPPING if signal.getsignal(each) is not signal.SIG_IGN
    }
    for each in before:
        signal.signal(each, stop)
    try:
        yield received
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
