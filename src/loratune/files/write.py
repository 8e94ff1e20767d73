"""Files that appear whole or not at all, and never through a link that somebody left in their place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp, mkstemp
from typing import IO


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file that takes the name `path` once it is written and synced, with the permissions of any new file.

    It is created under a name of its own beside `path`, exclusively, so that a link is neither followed nor written
    through; where anything fails it is gone and what was at `path` is as before.
    """
    descriptor, name = mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def write_atomically(path: Path, text: str) -> Path:
    """Text in UTF-8 through `replacing`."""
    with replacing(path) as file:
        file.write(text.encode())
    return path


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside `path` that takes its name once it is filled; where anything fails it is gone.

    What is at `path` must be absent or an empty folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(mkdtemp(dir=path.parent, prefix=f".{path.name[:100]}.", suffix=".tmp"))
    try:
        yield fresh
        fresh.chmod(0o777 & ~_umask())
        if path.exists():
            path.rmdir()
        fresh.rename(path)
    except BaseException:
        rmtree(fresh, ignore_errors=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make names in a folder outlive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    """The process's mask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
