"""The ledger: finished studies of this user, which correct the laws for the next one. One SQLite file.

Every access is one short transaction, so several runs may use it at once. Nothing in it is needed: a ledger that is
broken, locked or not writable gives a sentence to pass on and never stops a run. Knows tasks as JSON, not laws.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from json import JSONDecodeError, dumps, loads
from pathlib import Path

from loratune.files.paths import user_path
from loratune.values import StudiedTask

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


def ledger_path() -> Path:
    """$LORATUNE_LEDGER, else `loratune/ledger.db` in the user's data folder ($XDG_DATA_HOME, else ~/.local/share)."""
    if named := os.environ.get(VARIABLE):
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
                (key, now, directory, dumps(task.to_dict())),
            )


def read_entries(path: Path) -> list[Entry]:
    """All studies, the oldest first; none where there is no ledger. Raises `LedgerError`."""
    if not path.exists():
        return []
    with _errors(path), closing(_connect(path, read_only=True)) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > _VERSION:
            raise LedgerError(
                f"The ledger {path} is of a newer loratune (version {version}, known is {_VERSION}); it is not used."
            )
        if version == 0:
            return []
        rows = connection.execute(
            "SELECT key, finished, directory, task FROM studies ORDER BY finished, key"
        ).fetchall()
        return [
            Entry(key=key, finished=finished, directory=directory, task=StudiedTask.from_dict(loads(task)))
            for key, finished, directory, task in rows
        ]


def _connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    uri = f"{path.resolve().as_uri()}?mode={'ro' if read_only else 'rwc'}"
    return sqlite3.connect(uri, uri=True, timeout=_PATIENCE)


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Whatever is wrong with the file, in one sentence."""
    try:
        yield
    except (OSError, sqlite3.Error, JSONDecodeError, TypeError, KeyError) as error:
        raise LedgerError(
            f"The ledger {path} cannot be used ({error}); it is left as it is: delete it, name another by "
            f"${VARIABLE}, or give --no-ledger."
        ) from None
