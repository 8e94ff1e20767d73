"""The entry point: runs the command line; errors become one sentence and an exit code, signals an orderly end.

Imports little: what a command needs is loaded when it is known which one.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedWriter, FileIO, TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import Any, cast

from loratune import __version__
from loratune.errors import InputError, Interrupted, LoratuneError, ResourceError, Stop, printable
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

    A signal that the command was started to ignore (`nohup`) stays ignored.
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


def main() -> None:
    """Entry point: no traceback reaches a user unless LORATUNE_DEBUG is set."""
    with stoppable() as received, lasting_streams() as streams:
        try:
            code = _run(received)
        except KeyboardInterrupt:  # while the last words were said
            code = received.exit_code
    for stream in streams:
        if stream.loss is not None and code == 0:
            _say(
                f"The output could not be written ({stream.loss.strerror}); free some space and run it again."
            )
            code = ResourceError.exit_code
    sys.exit(code)


def entry() -> None:
    """`main` as a process of its own. Where a GPU was used the system takes everything back at once: to give recorded
    graphs, compilers and memory back one by one takes seconds, after the last file is written.
    """
    try:
        main()
    except SystemExit as end:
        torch = sys.modules.get("torch")
        if torch is None or not torch.cuda.is_initialized():
            raise
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))


def _run(received: Received) -> int:
    """The exit code of the command line, an error printed as one sentence."""
    if sys.argv[1:] == ["--version"]:  # in less time than it takes to load the commands
        print(f"loratune {__version__}")
        return 0
    try:
        from loratune.cli.commands import app

        app()  # typer turns its own usage errors into exit code 2 and what interrupts it into 130
    except SystemExit as end:
        interrupted = end.code == Interrupted.exit_code
        return received.exit_code if interrupted else int(end.code or 0)
    except BaseException as error:
        if os.environ.get("LORATUNE_DEBUG"):
            raise
        from loratune.cli.main import explain

        message, code = explain(error)
        _say(message)
        return code
    return 0


def _say(message: str) -> None:
    print(f"error: {printable(message)}", file=sys.stderr)
