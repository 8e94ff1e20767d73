"""How a command ends: errors as one sentence and an exit code, signals, streams that are no longer read."""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedWriter, FileIO, TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import Any, cast

from loratune.errors import InputError, LoratuneError, ResourceError, Stop
from loratune.files.paths import disk_is_full, fullest_disk

_PANIC = "PanicException"
"""How an assertion in a library written in Rust (tokenizers, safetensors) arrives; no subclass of `Exception`."""


def explain(error: BaseException) -> tuple[str, int]:
    """(sentence, exit code) of an error that reached the command line."""
    if isinstance(error, LoratuneError):
        return str(error), error.exit_code
    if disk_is_full(error):
        place = fullest_disk(Path.cwd())
        return (
            f"The disk {place} is full; free some space there and run the command again.",
            ResourceError.exit_code,
        )
    if isinstance(error, MemoryError):
        return "Memory is used up; use smaller data or a larger machine.", ResourceError.exit_code
    if isinstance(error, OSError) and error.filename is not None:
        reason = f"{error.strerror or type(error).__name__}: {error.filename!r}"
        return (
            f"A file or folder must be usable, but: {reason}; check the path and its permissions.",
            InputError.exit_code,
        )
    if type(error).__name__ == _PANIC:
        return (
            f"A file of the model or the data broke a rule of the library that reads it ({error}); "
            "check the tokenizer's files, or download the model again.",
            InputError.exit_code,
        )
    return (
        f"Unexpected {type(error).__name__}: {error}; set LORATUNE_DEBUG=1 to see where, and report it.",
        1,
    )


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


_NOBODY_READS = (errno.EPIPE, errno.EIO, errno.EBADF)
"""A pipe without a reader, a terminal that is gone, a descriptor that was closed."""


class LastingFile(FileIO):
    """Writes to a descriptor until that fails for the first time, and drops everything from then on."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of it, waiting where the reader is slower and its pipe does not block."""
        left = memoryview(data).cast("B")
        size = len(left)
        while left and self.failure is None:
            try:
                written = super().write(left)
            except OSError as error:
                self.failure = error
                break
            if written is None:
                select.select([], [self], [], 1.0)
            else:
                left = left[written:]
        return size

    @property
    def loss(self) -> OSError | None:
        """The failure, where somebody wanted to read what was dropped: a file on a full disk, say."""
        failure = self.failure
        return None if failure is None or failure.errno in _NOBODY_READS else failure


@contextmanager
def lasting_streams() -> Iterator[list[LastingFile]]:
    """stdout and stderr as `LastingFile`s for a while, characters that their encoding lacks as escapes.

    Streams that are no plain files (those of a test or a notebook) stay as they are.
    """
    _open_closed()
    files: list[LastingFile] = []
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_lasting(stream, files) for stream in before)
    try:
        yield files
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    finally:
        sys.stdout, sys.stderr = before


def _lasting(stream: Any, files: list[LastingFile]) -> Any:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    if not isinstance(stream, TextIOWrapper):
        return stream
    raw = getattr(stream.buffer, "raw", stream.buffer)  # unbuffered where PYTHONUNBUFFERED is set
    if not isinstance(raw, FileIO):
        return stream
    stream.flush()
    file = LastingFile(stream.fileno())
    files.append(file)
    return TextIOWrapper(
        cast(Any, file) if raw is stream.buffer else BufferedWriter(file),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _open_closed() -> None:
    """A standard descriptor that was closed would be given to the next file, and messages written into it."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
