"""Where a study's rows are: our own SQLite file or the user's database; opened to write, or a copy of it to read.

Our own file appears with its study in it, so that a kill leaves no database without one. While a run writes it is in
SQLite's write-ahead mode, where a reader of any patience holds no writer up; afterwards it is one plain file again.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, mkstemp
from types import FrameType
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from sqlalchemy import create_engine, inspect, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool, StaticPool

from loratune.errors import OutputError, ResourceError
from loratune.files.paths import disk_is_full, fullest_disk
from loratune.files.write import sync_folder
from loratune.metrics import find
from loratune.study.secrets import reason_of, with_driver

FILE = "study.db"
_PATIENCE = 30.0
"""Seconds to wait for another process's transaction."""
_FACT = "loratune:"
"""Prefix of the names of facts that only we read: Optuna's tools do not show a study's system attributes."""
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_COPIES = 50
"""Attempts at copying a file that another process writes meanwhile."""


def study_name(directory: Path) -> str:
    """Name of a new study: one in our own file; in a shared database, one per name of a run directory."""
    return f"loratune {directory.resolve().name}"


def load_study(place: BaseStorage, directory: Path, storage: str | None) -> optuna.Study:
    """The study of a run directory; in our own file whatever name it has, as folders are moved.

    Raises `KeyError` where there is none.
    """
    name = study_name(directory)
    if storage is None:
        names = [each.study_name for each in place.get_all_studies()]
        name = name if name in names or not names else names[0]
    return optuna.load_study(storage=place, study_name=name)


def open_storage(directory: Path, storage: str | None) -> BaseStorage:
    """The storage, for writing. Raises SQLAlchemy's and optuna's own errors; `storage_errors` translates them."""
    if storage is None:
        return optuna.storages.get_storage(_own(directory / FILE, write_ahead=True))
    if storage.startswith("sqlite:"):
        waiting = {"connect_args": {"timeout": _PATIENCE}}
        return optuna.storages.get_storage(RDBStorage(storage, engine_kwargs=waiting))
    if (journal := _journal_of(storage)) is not None:
        return _journal(journal)
    return optuna.storages.get_storage(with_driver(storage))


def create_file(directory: Path, direction: str, metric: str, facts: Mapping[str, Any]) -> None:
    """`study.db` with its study and these facts: written under a temporary name, and renamed when complete."""
    descriptor, name = mkstemp(dir=directory, prefix=f".{FILE}.", suffix=".tmp")
    os.close(descriptor)
    temporary = Path(name)
    try:
        storage = _own(temporary)
        study = create_study(storage, study_name(directory), direction, metric)
        for fact, value in facts.items():
            study.set_user_attr(fact, value)
        temporary.replace(directory / FILE)
    finally:
        for leftover in directory.glob(f"{temporary.name}*"):
            leftover.unlink()
    sync_folder(directory)


def read_storage(directory: Path, storage: str | None) -> BaseStorage | None:
    """The storage, for reading: a copy in memory if it is a file, so that nothing is written; None if there is none."""
    file = directory / FILE if storage is None else _file_of(storage)
    if storage is not None and (journal := _journal_of(storage)) is not None:
        return _journal(journal) if journal.is_file() else None
    if file is None:
        return _of_server(with_driver(str(storage)))
    if not file.is_file():
        return None
    memory = _in_memory(file)
    one_connection = {"creator": lambda: memory, "poolclass": StaticPool}
    return optuna.storages.get_storage(RDBStorage("sqlite://", engine_kwargs=one_connection))


def _of_server(url: str) -> BaseStorage | None:
    """The storage, for reading; None for a database that nobody has written a study to.

    Optuna makes the table of its version last, and whoever opens the database before that makes it, too: of two that do
    so at once one fails.
    """
    engine = create_engine(url)
    try:
        begun = inspect(engine).has_table("alembic_version")
    finally:
        engine.dispose()
    return optuna.storages.get_storage(RDBStorage(url, skip_table_creation=True)) if begun else None


def shared_folders(storage: str) -> list[str]:
    """Run directories whose studies are in this storage and take workers. Raises as `open_storage` does."""
    place = read_storage(Path(), storage)
    if place is None:
        return []
    kept = (place.get_study_system_attrs(each._study_id) for each in place.get_all_studies())
    found = (attributes.get(f"{_FACT}queue") for attributes in kept)
    return sorted(str(folder) for folder in found if folder is not None)


def settle(directory: Path) -> None:
    """Make `study.db` one plain file again, where no other process has it open; else the next to open it does so."""
    file = directory / FILE
    if not file.is_file():
        return
    with suppress(sqlite3.Error), closing(sqlite3.connect(file, timeout=0)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")


def create_study(place: BaseStorage, name: str, direction: str, metric: str) -> optuna.Study:
    """Create or load, its objective named; without Optuna's messages, its verbosity for the caller as it was."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(storage=place, study_name=name, direction=direction, load_if_exists=True)
        name_objective(study, metric)
        return study
    finally:
        optuna.logging.set_verbosity(verbosity)


def put_fact(study: optuna.Study, name: str, value: Any) -> None:
    """Keep a JSON value with the study, out of sight of Optuna's tools."""
    place = study._storage
    place.set_study_system_attr(place.get_study_id_from_name(study.study_name), _FACT + name, value)


def get_fact(study: optuna.Study, name: str, default: Any = None) -> Any:
    """What `put_fact` kept, or the default; up to format 2 facts were user attributes."""
    place = study._storage
    kept = place.get_study_system_attrs(place.get_study_id_from_name(study.study_name))
    return kept[_FACT + name] if _FACT + name in kept else study.user_attrs.get(name, default)


def name_objective(study: optuna.Study, metric: str) -> None:
    """What Optuna's tools call the value of a trial."""
    name = f"validation {find(metric).info.title}"
    if study.metric_names != [name]:
        with warnings.catch_warnings():  # Optuna calls it experimental
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names([name])


def _own(file: Path, *, write_ahead: bool = False) -> RDBStorage:
    """The storage by its path: in a URL `?`, `{` and `%` mean something else; a connection lasts one transaction."""

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(file, timeout=_PATIENCE, check_same_thread=False)
        if write_ahead:
            with suppress(
                sqlite3.OperationalError
            ):  # a file system that cannot, or a reader: as it was before
                connection.execute("PRAGMA journal_mode=WAL")
        return connection

    return RDBStorage("sqlite:///", engine_kwargs={"creator": connect, "poolclass": NullPool})


def _file_of(storage: str) -> Path | None:
    """The file of an SQLite URL without parameters; None for other storages."""
    try:
        url = make_url(storage)
    except ArgumentError:
        return None
    plain = (
        url.get_backend_name() == "sqlite" and not url.query and url.database not in (None, "", ":memory:")
    )
    return Path(str(url.database)) if plain else None


def _journal_of(storage: str) -> Path | None:
    """The file of `journal:///PATH`, a log that several hosts may append to; None for other storages."""
    with suppress(ArgumentError):
        url = make_url(storage)
        if url.get_backend_name() == "journal" and url.database:
            return Path(url.database)
    return None


def _journal(file: Path) -> BaseStorage:
    """Its lock is a file that is created exclusively, which network file systems keep, too."""
    file.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(file), lock_obj=JournalFileOpenLock(str(file))))


def _in_memory(file: Path) -> sqlite3.Connection:
    """The database in memory, from a copy of its files taken while none of them changed."""
    with TemporaryDirectory(prefix="loratune-") as folder:
        copy = Path(folder) / FILE
        sources = [file, *(file.with_name(f"{file.name}{end}") for end in ("-wal", "-journal"))]
        for _ in range(_COPIES):
            before = _stamps(sources)
            for path in sources:
                target = copy.with_name(path.name.replace(file.name, FILE, 1))
                target.unlink(missing_ok=True)
                with suppress(FileNotFoundError):
                    shutil.copyfile(path, target)
            if _stamps(sources) == before:
                break
            time.sleep(0.1)
        memory = sqlite3.connect(":memory:", check_same_thread=False)
        with closing(sqlite3.connect(copy)) as connection:
            connection.backup(memory)
        return memory


def _stamps(paths: list[Path]) -> list[tuple[int, int] | None]:
    found: list[tuple[int, int] | None] = []
    for path in paths:
        try:
            facts = path.stat()
            found.append((facts.st_size, facts.st_mtime_ns))
        except FileNotFoundError:
            found.append(None)
    return found


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold signals back for the moment of a transaction: one left open would lock the database for the rest."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are handled in the main thread only
        return
    held: list[tuple[int, FrameType | None]] = []
    before: dict[int, Callable[[int, FrameType | None], Any]] = {}
    for each in _STOPPING:
        handler = signal.getsignal(each)
        if callable(handler):
            before[each] = handler
            signal.signal(each, lambda number, frame: held.append((number, frame)))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if held:
            before[held[0][0]](*held[0])


@contextmanager
def storage_errors(directory: Path, storage: str | None) -> Iterator[None]:
    """One sentence instead of a database's traceback, without the secrets of the URL."""
    try:
        yield
    except (OutputError, ResourceError):
        raise
    except Exception as error:
        if disk_is_full(error):
            raise ResourceError(
                f"The disk {fullest_disk(directory)} is full; free some space there."
            ) from error
        if not isinstance(
            error, (SQLAlchemyError, StorageInternalError, sqlite3.Error, ImportError, OSError, *_CONTENT)
        ):
            raise
        reason = reason_of(error, storage)
        whose = f" of {directory}" if directory.parts else ""
        raise OutputError(
            f"The study{whose} must be in a storage that can be read and written, but: {reason}; "
            "check --storage; where the database is damaged put a copy of it back, or tune again with another --out."
        ) from None


_CONTENT = (RuntimeError, ValueError, TypeError, KeyError, AttributeError, AssertionError)
"""What SQLAlchemy and optuna raise of tables whose content is not what they wrote."""
