"""Standard streams that outlive who reads them: a closed pipe or a lost terminal never ends a run."""

from __future__ import annotations

import errno
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import Any, cast

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
