"""A team's ledger: the finished studies of several people, in a PostgreSQL database that all of them may write to.

It holds what the file of one user holds, and whose each study is: facts of model and data, digests and losses, never a
row's text. Every access is one short transaction, so any number of people may use it at once.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from json import dumps

from sqlalchemy import (
    Column,
    Connection,
    Integer,
    MetaData,
    Table,
    Text,
    create_engine,
    delete,
    func,
    inspect,
    make_url,
    select,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError

from loratune.errors import printable
from loratune.study.ledger import Entries, LedgerError, read_entries
from loratune.study.secrets import masked, reason_of, with_driver
from loratune.values import StudiedTask
from loratune.values.plain import to_plain

OWNER = "LORATUNE_OWNER"
"""Environment variable with the label that one's studies bear; else it is user@host."""
_VERSION = 1
_PATIENCE = 5
"""Seconds to wait for the server, and for another's transaction."""
_LOCK = 0x6C6F7261
"""Number of the server's lock for making the tables: two processes at once would fail."""

_TABLES = MetaData()
_FORMAT = Table("loratune_ledger", _TABLES, Column("version", Integer, nullable=False))
_STUDIES = Table(
    "loratune_studies",
    _TABLES,
    Column("key", Text, primary_key=True),
    Column("finished", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("dataset", Text, nullable=False),
    Column("directory", Text, nullable=False),
    Column("task", Text, nullable=False),
)
"""Model and dataset are those of the task, for people who query the database itself."""


def owner() -> str:
    """Whose studies are written from here."""
    named = os.environ.get(OWNER)
    try:
        return named or f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):  # a container's user without a name
        return f"{os.getuid()}@{socket.gethostname()}"


class TeamLedger:
    """The ledger behind a URL; every method raises `LedgerError` where it cannot be used."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.name = masked(url)
        """To be shown: without the password."""

    def read(self) -> Entries:
        """All studies, whosever they are; nothing where nobody has written any."""
        with self._connected() as connection:
            if not self._begun(connection):
                return Entries()
            columns = _STUDIES.c
            query = select(columns.key, columns.finished, columns.directory, columns.task, columns.owner)
            rows = connection.execute(query.order_by(columns.finished, columns.key)).all()
        return read_entries([tuple(row) for row in rows])

    def write(self, key: str, directory: str, task: StudiedTask) -> None:
        """Add a finished study, or put it in the place of its earlier run, by whomever."""
        values = {
            "key": key,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "owner": owner(),
            "model": task.model,
            "dataset": task.dataset,
            "directory": directory,
            "task": dumps(to_plain(task)),
        }
        with self._connected() as connection:
            if not self._begun(connection):
                self._begin(connection)
            statement = insert(_STUDIES).values(values)
            connection.execute(statement.on_conflict_do_update(index_elements=["key"], set_=values))

    def remove(self, keys: Sequence[str]) -> int:
        """Take entries out, damaged ones too, all in one transaction; returns how many there were."""
        with self._connected() as connection:
            if not self._begun(connection):
                return 0
            return connection.execute(delete(_STUDIES).where(_STUDIES.c.key.in_(keys))).rowcount

    def _begun(self, connection: Connection) -> bool:
        """Whether there are tables, of a version that is known."""
        if not inspect(connection).has_table(_FORMAT.name):
            return False
        version = connection.execute(select(_FORMAT.c.version)).scalar()
        if version != _VERSION:
            raise LedgerError(
                f"The ledger {self.name} is of another loratune (version {version}, known is {_VERSION}); it is not "
                "used."
            )
        return True

    def _begin(self, connection: Connection) -> None:
        connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
        if not inspect(connection).has_table(_FORMAT.name):
            _TABLES.create_all(connection)
            connection.execute(_FORMAT.insert().values(version=_VERSION))

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        """One transaction."""
        try:
            waiting = {"connect_timeout": _PATIENCE, "options": f"-c lock_timeout={_PATIENCE}s"}
            own = {name: value for name, value in waiting.items() if name not in make_url(self._url).query}
            engine = create_engine(with_driver(self._url), connect_args=own)
            try:
                with engine.begin() as connection:
                    yield connection
            finally:
                engine.dispose()
        except (SQLAlchemyError, ImportError, OSError, ValueError, TypeError) as error:
            reason = printable(reason_of(error, self._url))
            raise LedgerError(
                f"The ledger {self.name} cannot be used ({reason}); give another by --ledger URL, or --no-ledger."
            ) from None
