"""One run to a directory: its lock, and the file by which another process asks it to stop."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from json import dumps
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout

from loratune.errors import OutputError, printable
from loratune.files.read_json import parse_json
from loratune.files.write import make_folder, write_atomically

_LOCK, _OWNER = ".lock", ".lock.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Owner:
    """Who holds a lock."""

    process: int
    host: str
    since: str
    """UTC, ISO 8601."""

    @classmethod
    def here(cls) -> Self:
        """This process, from now on."""
        return cls(
            process=os.getpid(),
            host=socket.gethostname(),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, since {self.since}"


class FolderLock:
    """Released at the latest when the process ends, however it ends; nothing is written before `acquire`.

    A folder that it made goes with it where an error came before anything else was written.

    On a file system without locks it has no effect.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = FileLock(folder / _LOCK)
        self._is_ours = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock.is_locked:
            with suppress(OSError):
                (self.folder / _OWNER).unlink(missing_ok=True)
            with suppress(OSError):
                if error is not None and self._is_ours and is_empty(self.folder):
                    (self.folder / _LOCK).unlink(missing_ok=True)  # while it is held: nobody else begins here
                    self.folder.rmdir()
            self._lock.release()

    def acquire(self) -> None:
        """Make the folder and hold it. Raises `OutputError` with the owner where another process does."""
        if self._lock.is_locked:
            return
        self._is_ours = not self.folder.exists()
        make_folder(self.folder)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise _in_use(self.folder) from None
        except (OSError, NotImplementedError):
            if not os.access(self.folder, os.W_OK):
                raise
            return
        write_atomically(self.folder / _OWNER, dumps(asdict(Owner.here())) + "\n")


def _in_use(folder: Path) -> OutputError:
    return OutputError(
        f"A run directory takes one run at a time, but {str(folder)!r} is in use by {owner_of(folder)}; wait until it "
        "has ended, or choose another --out."
    )


def check_new(folder: Path, otherwise: str = "choose another --out") -> None:
    """Raise `OutputError` where a folder to write into is not new or empty, with the run that is at work in it.

    `otherwise`: what the user may do where none is.
    """
    if not folder.exists() or (folder.is_dir() and is_empty(folder)):
        return
    if seems_held(folder):
        raise _in_use(folder)
    raise OutputError(f"--out must be a new or empty folder, but {folder} is not; {otherwise}.")


def check_free(folder: Path) -> None:
    """`FolderLock.acquire` without taking it, before hours are spent on preparing what it is for."""
    if (folder / _OWNER).exists():
        with FolderLock(folder) as lock:
            lock.acquire()


def seems_held(folder: Path) -> bool:
    """Whether a process works here, as far as its word can be had without touching the lock.

    On another host it is believed; here the process must be there.
    """
    try:
        owner = Owner(**parse_json((folder / _OWNER).read_text(encoding="utf-8")))
        if owner.host == socket.gethostname():
            os.kill(int(owner.process), 0)
    except PermissionError:
        return True
    except (OSError, ValueError, TypeError, OverflowError):
        return False
    return True


def owner_of(folder: Path) -> str:
    """The process that has written its name into the folder's lock."""
    try:
        owner = Owner(**parse_json((folder / _OWNER).read_text(encoding="utf-8")))
        return printable(str(owner)[:200])
    except (OSError, ValueError, TypeError):
        return "another process"


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but the lock and unfinished files of a run that was killed as it began."""
    return all(
        path.name in (_LOCK, _OWNER) or (path.name.startswith(".") and ".tmp" in path.suffix)
        for path in folder.iterdir()
    )


FILE = "stop"


def ask_to_stop(directory: Path) -> None:
    """The search begins no trial any more, and what runs ends at its next reading. Raises `OSError` as files do."""
    write_atomically(directory / FILE, "Asks the run in this folder to end its search with what is known.\n")


def is_asked_to_stop(directory: Path) -> bool:
    """Whether somebody has."""
    return (directory / FILE).exists()


def forget_stop(directory: Path) -> None:
    """A run that begins or has ended was not meant by it."""
    (directory / FILE).unlink(missing_ok=True)
