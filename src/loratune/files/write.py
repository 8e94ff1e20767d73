"""Files that appear whole or not at all, and never through a link that somebody left in their place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp, mkstemp
from time import time
from typing import IO

_UNFINISHED = 3600.0
"""Seconds since anything happened to a temporary file, after which nobody is at it any more."""


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
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """An empty folder beside `path` that takes its name once it is filled and synced; where anything fails it is gone.

    What is at `path` must be absent or an empty folder, or with `replace` any, which is then removed.
    """
    make_folder(path.parent)
    fresh = _temporary_folder(path)
    try:
        yield fresh
        _sync_all(fresh)
        fresh.chmod(0o777 & ~_umask())
        if replace and path.is_dir() and not path.is_symlink():
            fresh = _exchanged(fresh, path)
        else:
            fresh.rename(path)  # takes the place of an empty folder, too
    except BaseException:
        rmtree(fresh, ignore_errors=True)
        raise
    sync_folder(path.parent)
    rmtree(fresh, ignore_errors=True)


def _exchanged(fresh: Path, path: Path) -> Path:
    """Put one folder in the place of another; where the other one is now."""
    old = _temporary_folder(path)
    path.rename(old)
    try:
        fresh.rename(path)
    except BaseException:
        old.rename(path)
        raise
    return old


def _temporary_folder(path: Path) -> Path:
    return Path(mkdtemp(dir=path.parent, prefix=f".{path.name[:100]}.", suffix=".tmp"))


def make_folder(path: Path) -> None:
    """A folder with those above it, which a loss of power does not take away. Raises `OSError`."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def _sync_all(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync(path)
    sync_folder(folder)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes left under temporary names, unless another may still be at it."""
    for path in folder.glob(".*.tmp"):
        with suppress(OSError):
            if time() - path.lstat().st_mtime < _UNFINISHED:
                continue
            if path.is_dir() and not path.is_symlink():
                rmtree(path)
            else:
                path.unlink()


def sync_folder(folder: Path) -> None:
    """Make names in a folder outlive a loss of power."""
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    """The process's mask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
