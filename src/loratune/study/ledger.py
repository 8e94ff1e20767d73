"""The ledger: finished studies, which correct the laws for the next one. A user's own is one SQLite file.

Every access is one short transaction, so several runs may use it at once. Nothing in it is needed: a ledger that is
broken, locked or not writable gives a sentence to pass on and never stops a run. Knows tasks as JSON, not laws.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from json import dumps
from pathlib import Path
from typing import Any

from loratune.files.paths import user_path
from loratune.files.read_json import parse_json
from loratune.values import StudiedTask
from loratune.values.plain import to_plain

VARIABLE = "LORATUNE_LEDGER"
_VERSION = 1
_PATIENCE = 5.0
"""Seconds to wait for another process's transaction."""
_TABLE = """CREATE TABLE IF NOT EXISTS studies (
    key TEXT PRIMARY KEY,
    finished TEXT NOT NULL,
    directory TEXT NOT NULL,
    task TEXT NOT NULL
)"""


class LedgerError(Exception):
    """The ledger cannot be used; its text is a sentence for the user."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One finished study."""

    key: str
    """Equal for a repetition of the same study."""
    finished: str
    """UTC, ISO 8601."""
    directory: str
    task: StudiedTask
    owner: str = ""
    """Whose it is, in a team's ledger."""


def ledger_path() -> Path:
    """$LORATUNE_LEDGER, else `loratune/ledger.db` in the user's data folder ($XDG_DATA_HOME, else ~/.local/share)."""
    named = os.environ.get(VARIABLE)
    if named and not is_url(named):
        return user_path(named)
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "loratune" / "ledger.db"


def write_entry(path: Path, key: str, directory: str, task: StudiedTask) -> None:
    """Add a finished study, or put it in the place of its earlier run. Raises `LedgerError`."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with _errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(_connect(path)) as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(_TABLE)
            connection.execute(f"PRAGMA user_version = {_VERSION}")
            connection.execute(
                "INSERT OR REPLACE INTO studies VALUES (?, ?, ?, ?)",
                (key, now, directory, dumps(to_plain(task))),
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Entries:
    """All studies that could be read, the oldest first."""

    studies: tuple[Entry, ...] = ()
    damaged_keys: tuple[str, ...] = ()
    """Keys of entries that are not what was written; they are left out."""

    @property
    def damaged(self) -> int:
        """How many are left out."""
        return len(self.damaged_keys)

    def note(self, name: object) -> str | None:
        """A sentence about what was left out; None where nothing was."""
        if not self.damaged:
            return None
        return (
            f"{self.damaged} of {self.damaged + len(self.studies)} studies in the ledger {name} cannot be read and "
            "are left out."
        )


def read_ledger(path: Path) -> Entries:
    """What is in the ledger; nothing where there is none. Raises `LedgerError` where it cannot be used at all."""
    if not path.exists():
        return Entries()
    with _errors(path), closing(_connect(path, read_only=True)) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > _VERSION:
            raise LedgerError(
                f"The ledger {path} is of a newer loratune (version {version}, known is {_VERSION}); it is not used."
            )
        if version == 0:
            return Entries()
        rows = connection.execute(
            "SELECT key, finished, directory, task FROM studies ORDER BY finished, key"
        ).fetchall()
    return read_entries(rows)


def read_entries(rows: Sequence[tuple[Any, ...]]) -> Entries:
    """Entries of rows with key, time, directory, task and, in a team's ledger, owner."""
    found = [(str(row[0]), _entry(*row)) for row in rows]
    return Entries(
        studies=tuple(entry for _, entry in found if entry is not None),
        damaged_keys=tuple(key for key, entry in found if entry is None),
    )


def remove_entries(path: Path, keys: Sequence[str]) -> int:
    """Take entries out, damaged ones too, all in one transaction; returns how many there were. Raises `LedgerError`."""
    if not path.exists():
        return 0
    with _errors(path), closing(_connect(path)) as connection, connection:
        connection.execute("BEGIN IMMEDIATE")
        marks = ", ".join("?" * len(keys))
        return connection.execute(f"DELETE FROM studies WHERE key IN ({marks})", tuple(keys)).rowcount


def _entry(key: Any, finished: Any, directory: Any, task: Any, owner: Any = "") -> Entry | None:
    if not all(isinstance(each, str) for each in (key, finished, directory, task, owner)):
        return None
    try:
        known = StudiedTask.from_dict(parse_json(task))
        return Entry(key=key, finished=finished, directory=directory, task=known, owner=owner)
    except (ValueError, TypeError, KeyError):
        return None


def _connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    uri = f"{path.resolve().as_uri()}?mode={'ro' if read_only else 'rwc'}"
    connection = sqlite3.connect(uri, uri=True, timeout=_PATIENCE)
    connection.text_factory = _text
    return connection


def _text(content: bytes) -> str | None:
    """The text; None if it is no UTF-8: one damaged entry is no reason to lose the others."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


def is_url(name: str) -> bool:
    """Whether a value of --ledger, or of the environment variable, is a database, and no key or file."""
    return "://" in name


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Whatever is wrong with the file, in one sentence."""
    try:
        yield
    except (OSError, sqlite3.Error, ValueError, OverflowError) as error:
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_BUSY:
            raise LedgerError(
                f"The ledger {path} is in use by another process ({error}); try again, or give --no-ledger."
            ) from None
        raise LedgerError(
            f"The ledger {path} cannot be used ({error}); it is left as it is: delete it, name another by "
            f"${VARIABLE}, or give --no-ledger."
        ) from None
