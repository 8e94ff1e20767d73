"""Which ledger is meant, a user's own file or a team's database, and what both can do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

from loratune.errors import InputError, printable
from loratune.study.ledger import (
    VARIABLE,
    Entries,
    is_url,
    ledger_path,
    read_ledger,
    remove_entries,
    write_entry,
)
from loratune.values import StudiedTask


class Ledger(Protocol):
    """Finished studies, a user's own or a team's; every method raises `LedgerError` where it cannot be used."""

    @property
    def name(self) -> str:
        """To be shown."""

    def read(self) -> Entries:
        """All studies; nothing where there is no ledger yet."""

    def write(self, key: str, directory: str, task: StudiedTask) -> None:
        """Add a finished study, or put it in the place of its earlier run."""

    def remove(self, keys: Sequence[str]) -> int:
        """Take entries out; returns how many there were."""


class OwnLedger:
    """The user's file."""

    def __init__(self) -> None:
        self._path = ledger_path()
        self.name = str(self._path)

    def read(self) -> Entries:
        return read_ledger(self._path)

    def write(self, key: str, directory: str, task: StudiedTask) -> None:
        write_entry(self._path, key, directory, task)

    def remove(self, keys: Sequence[str]) -> int:
        return remove_entries(self._path, keys)


def team_of(names: Sequence[str]) -> str | None:
    """The URL among the values of --ledger; None where all are keys.

    Raises `InputError` for what is no URL of PostgreSQL; it may hold a password, and is not repeated.
    """
    urls = [name for name in names if is_url(name)]
    example = "give e.g. --ledger postgresql://ann@host/ledger"
    if len(urls) > 1:
        raise InputError(f"--ledger must name one database at most, got {len(urls)}; {example}.")
    for url in urls:
        scheme = url.partition("://")[0]
        if scheme not in ("postgresql", "postgresql+psycopg", "postgres"):
            raise InputError(
                f"--ledger must be keys or the URL of a PostgreSQL database, got {printable(scheme)}://...; {example}."
            )
    return urls[0] if urls else None


def keys_of(names: Sequence[str]) -> tuple[str, ...]:
    """The keys among the values of --ledger."""
    return tuple(name for name in names if not is_url(name))


def open_ledger(url: str | None = None) -> Ledger:
    """The team's behind a URL, by default the one that the environment names; the user's own where none is named."""
    url = url or os.environ.get(VARIABLE, "")
    if not is_url(url):
        return OwnLedger()
    from loratune.study.team_ledger import TeamLedger  # imports SQLAlchemy

    return TeamLedger(url)
