"""Paths that a user gave: `~` is the home folder, and a disk that is full has a name."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from tempfile import gettempdir

from loratune.errors import InputError, OutputError, printable

_WRITTEN_IN_PLACE = ("study.db", ".lock")
"""Beginnings of the names of files that are not replaced by new ones."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_TEXTS = ("No space left on device", "database or disk is full", "Disk quota exceeded")
"""Messages of libraries that keep the text and not the number."""


def user_path(text: str | Path) -> Path:
    """The path with `~` expanded. Raises `InputError` where there is no such home folder."""
    path = Path(text)
    try:
        return path.expanduser()
    except RuntimeError:
        raise InputError(
            f"A path that begins with ~ must name a user of this machine, got {str(path)!r}; write it out."
        ) from None


def real_path(text: str | Path) -> Path:
    """The path in full, with links followed; as far as they lead, where they go in a circle."""
    return Path(os.path.realpath(user_path(text)))


def check_own(directory: Path) -> None:
    """Raise `OutputError` where a run directory that may come from elsewhere would have us write outside of it."""
    for path in directory.iterdir() if directory.is_dir() else ():
        leads_out = path.is_dir() or path.name.startswith(_WRITTEN_IN_PLACE)
        if path.is_symlink() and leads_out:
            raise OutputError(
                f"A run directory must hold its own files, but {printable(repr(str(path)))} is a link to elsewhere; "
                f"put a copy of what it names in its place (cp -rL {printable(str(directory))} COPY)."
            )


def disk_is_full(error: BaseException) -> bool:
    """Whether this error, or one that it was raised from, is a disk or a quota without room."""
    return any(
        (isinstance(each, OSError) and each.errno in _FULL)
        or (isinstance(each, sqlite3.Error) and getattr(each, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL)
        or any(text in str(each) for text in _FULL_TEXTS)
        for each in _chain(error)
    )


def fullest_disk(*folders: Path) -> str:
    """`'/data' (12 MiB free)`: the disk with the least room of those that hold the folders and temporary files."""
    places = [_existing(folder) for folder in (*folders, Path(gettempdir()))]
    place = min(places, key=lambda each: shutil.disk_usage(each).free)
    while not os.path.ismount(place):
        place = place.parent
    return f"{str(place)!r} ({shutil.disk_usage(place).free / 2**20:.0f} MiB free)"


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    place = folder.absolute()
    while not place.is_dir():
        place = place.parent
    return place.resolve()


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
