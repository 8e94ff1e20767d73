"""Every trial in Optuna's storage, its per-example arrays in one .npz file beside it; nothing is pickled.

A trial is written once, when it has ended: first the arrays (temporary file, fsync, rename), then the
Optuna row in one transaction. So after `kill -9` a trial is there as a whole or not at all. Knows nothing of
how trials are chosen or trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from json import dumps, loads
from pathlib import Path
from typing import Any, Self, TypeVar

import optuna

from loratune.errors import OutputError
from loratune.files.write import make_folder
from loratune.metrics import find
from loratune.study.database import (
    FILE,
    create_file,
    create_study,
    get_fact,
    load_study,
    name_objective,
    open_storage,
    put_fact,
    read_storage,
    settle,
    storage_errors,
    study_name,
    uninterrupted,
)
from loratune.study.rows import DamagedRow, arrays_of, is_ours, read_arrays, result_of, row_of, write_arrays
from loratune.values import TrialResult

Fingerprint = dict[str, Any]


def _to_2(found: Fingerprint, wanted: Mapping[str, Any]) -> Fingerprint:
    """Version 2 has digests of the tokenizer and of all weights; an older study takes those of what is there now."""
    return found | {name: wanted[name] for name in ("tokenizer_digest", "weights_digest") if name in wanted}


def _to_3(found: Fingerprint, wanted: Mapping[str, Any]) -> Fingerprint:
    """Version 3 keeps what only we read of a trial under one attribute; `study/rows.py` reads both."""
    return found


_STEPS: tuple[Callable[[Fingerprint, Mapping[str, Any]], Fingerprint], ...] = (_to_2, _to_3)
"""Steps from version 1 to 2, and so on; a step that has been released is never changed."""

FORMAT = 1 + len(_STEPS)
"""Version of the studies that are written now."""


def migrated(found: Fingerprint, version: Any, wanted: Mapping[str, Any]) -> Fingerprint:
    """The fingerprint of an older study as this version would have kept it.

    `wanted`: the fingerprint of now. Raises `OutputError` for a study of a newer version.
    """
    if not isinstance(version, int) or not 1 <= version <= FORMAT:
        raise OutputError(
            f"A study must be of format 1 to {FORMAT}, got {version!r}; continue it with the version of "
            "loratune that wrote it."
        )
    for step in _STEPS[version - 1 :]:
        found = step(found, wanted)
    return found


PROXY = "proxy"
"""Folder of the run on a smaller model, whose study comes before that of the run itself."""
_FINGERPRINT, _FORMAT, _METRIC = "fingerprint", "format", "metric"

Fact = TypeVar("Fact")


class Study:
    """The trials and facts of one run directory. Open it with `Study.open` or `Study.load`."""

    def __init__(
        self, directory: Path, study: optuna.Study, metric: str, *, storage: str | None = None
    ) -> None:
        self.directory = directory
        self._study = study
        self._storage = storage
        self._metric = metric
        self.damaged = 0
        """Trials that could not be read and are to be trained again, when the results were last read."""
        self._recorded = {result.asked.key for result in self.results()}

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        storage: str | None = None,
        resume: bool = False,
        fingerprint: Mapping[str, Any],
        metric: str = "nll",
        absent: Mapping[str, Any] | None = None,
    ) -> Self:
        """A new study, or with `resume` the one that is there; `storage` is any Optuna database URL.

        `fingerprint` holds everything that must be the same for the trials to be comparable (options, data,
        model), as JSON values; `absent` what a name that an older study does not have stands for. Raises `OutputError`
        where another study is in the way.
        """
        if not resume and (directory / "result.json").exists():
            raise _occupied(directory)
        direction = "maximize" if find(metric).info.larger_is_better else "minimize"
        wanted = _as_json(fingerprint)
        shown: dict[str, Any] = {name: wanted[name] for name in ("model", "data") if name in wanted}
        facts: dict[str, Any] = {**shown, _METRIC: metric, _FORMAT: FORMAT, _FINGERPRINT: wanted}
        with storage_errors(directory, storage), uninterrupted():
            if storage is None:
                make_folder(directory)
                if not (directory / FILE).exists():
                    create_file(directory, direction, metric, facts)
                    return cls._opened(directory, None, metric)
            place = open_storage(directory, storage)
            make_folder(directory)
            try:
                study = load_study(place, directory, storage)
                name_objective(study, metric)
            except KeyError:
                study = create_study(place, study_name(directory), direction, metric)
            found = study.user_attrs.get(_FINGERPRINT)
            if found is not None and not resume:
                raise _occupied(directory)
            if found is not None:
                found = migrated(found, study.user_attrs.get(_FORMAT, 1), wanted)
                if (found := {**_as_json(absent or {}), **found}) != wanted:
                    raise _changed(directory, found, wanted)
            for name, value in facts.items():
                if study.user_attrs.get(name) != value:
                    study.set_user_attr(name, value)
            return cls(directory, study, metric, storage=storage)

    @classmethod
    def _opened(cls, directory: Path, storage: str | None, metric: str) -> Self:
        study = load_study(open_storage(directory, storage), directory, storage)
        return cls(directory, study, metric, storage=storage)

    @classmethod
    def find(cls, directory: Path, *, storage: str | None = None, reading: bool = False) -> Self | None:
        """The study that is there, or None; with `reading` a copy of it, and nothing is written anywhere.

        Raises `OutputError` where it is in a database that is not named, where a proxy's comes first, and where it
        cannot be read.
        """
        if storage is None and not (directory / FILE).exists():
            if (directory / PROXY).is_dir():
                raise OutputError(
                    f"{directory} must hold a study, but its search on the proxy, in {directory / PROXY}, comes "
                    f"first; go on with tune {directory} --resume."
                )
            if (directory / "loratune.toml").exists():
                raise OutputError(
                    f"{directory} must hold {FILE}, but does not; name the database by --storage URL if the run was "
                    "started with one, else put the file back."
                )
            return None
        with storage_errors(directory, storage), uninterrupted():
            place = read_storage(directory, storage) if reading else open_storage(directory, storage)
            if place is None:
                return None
            try:
                study = load_study(place, directory, storage)
            except KeyError:
                return None
            return cls(directory, study, study.user_attrs.get(_METRIC, "nll"), storage=storage)

    @classmethod
    def load(cls, directory: Path, *, storage: str | None = None, reading: bool = False) -> Self:
        """`find`, which must find one. Raises `OutputError` where there is none."""
        study = cls.find(directory, storage=storage, reading=reading)
        if study is None:
            if storage is None:
                raise OutputError(
                    f"A run directory must hold a study in {FILE}, but {directory} has none; give the --out of a tune."
                )
            raise OutputError(
                f"The database of --storage must hold the study of {directory}, but does not; tune first."
            )
        return study

    def check(self, facts: Mapping[str, Any], *, absent: Mapping[str, Any] | None = None) -> None:
        """Raise `OutputError` where the fingerprint has another value for one of these facts.

        `absent`: what a name that an older study does not have stands for.
        """
        found = self.get_fact(_FINGERPRINT)
        wanted = _as_json(facts)
        if found is None:
            return
        with storage_errors(self.directory, self._storage):
            found = {**_as_json(absent or {}), **migrated(found, self.get_fact(_FORMAT, 1), wanted)}
        if (kept := {name: found.get(name) for name in wanted}) != wanted:
            raise _changed(self.directory, kept, wanted)

    def record(self, result: TrialResult) -> None:
        """Keep a finished trial for good; a key that is already there is left as it is."""
        key = result.asked.key
        if key in self._recorded:
            return
        arrays = arrays_of(result)
        row = row_of(result, tuple(arrays), self._metric)
        with storage_errors(self.directory, self._storage), uninterrupted():
            if arrays:
                write_arrays(self._array_file(key), arrays)
            self._study.add_trial(row)
        self._recorded.add(key)

    def results(self) -> list[TrialResult]:
        """All recorded trials, once per key, in the order of their recording.

        A trial whose row or array file is missing or damaged is left out, so that it is trained again.
        """
        found: dict[str, TrialResult] = {}
        with storage_errors(self.directory, self._storage), uninterrupted():
            rows = self._study.get_trials(deepcopy=False)
        damaged = set()
        for row in rows:
            if not is_ours(row):
                continue
            try:
                result = result_of(row, lambda key, names: read_arrays(self._array_file(key), names))
                found[result.asked.key] = result
            except DamagedRow as error:
                damaged.add(str(error))
        self.damaged = len(damaged - found.keys())
        return list(found.values())

    def put_fact(self, name: str, value: Any) -> None:
        """Keep a JSON value under a name, such as the calibration or the plan."""
        with storage_errors(self.directory, self._storage), uninterrupted():
            put_fact(self._study, name, value)

    def show(self, name: str, text: str) -> None:
        """Keep a sentence for people, whom Optuna's tools show it."""
        with storage_errors(self.directory, self._storage), uninterrupted():
            self._study.set_user_attr(name, text)

    def get_fact(self, name: str, default: Any = None) -> Any:
        """What `put_fact` kept, or the default."""
        with storage_errors(self.directory, self._storage):
            return get_fact(self._study, name, default)

    def decode_fact(self, name: str, decode: Callable[[Any], Fact]) -> Fact | None:
        """What `put_fact` kept as a value of ours; None where nothing was. Raises `OutputError` where it is damaged."""
        value = self.get_fact(name)
        if value is None:
            return None
        try:
            return decode(value)
        except Exception as error:  # whatever a decoder makes of what is no longer what was written
            raise OutputError(
                f"The study of {self.directory} must hold a readable {name!r}, but it is damaged "
                f"({type(error).__name__}: {str(error).partition(chr(10))[0]}); choose another --out."
            ) from None

    def close(self) -> None:
        """Leave the run directory with one plain `study.db`, if no other process has it open."""
        if self._storage is None:
            settle(self.directory)

    def _array_file(self, key: str) -> Path:
        return self.directory / "trials" / f"{key}.npz"


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as they come back from a storage."""
    plain: dict[str, Any] = loads(dumps(dict(values)))
    return plain


def _occupied(directory: Path) -> OutputError:
    return OutputError(
        f"--out must not hold another study, but {directory} does; "
        "continue it with --resume, or choose another --out."
    )


def _changed(directory: Path, found: Any, wanted: Any) -> OutputError:
    return OutputError(
        f"--resume needs the options, data and model that {directory} was started with, but "
        f"{', '.join(_differences(found, wanted))}; restore them, or choose another --out."
    )


def _differences(found: Any, wanted: Any, path: str = "") -> list[str]:
    """Every key at which two JSON values differ, with both values."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        return [
            difference
            for name in sorted(found.keys() | wanted.keys())
            if found.get(name) != wanted.get(name)
            for difference in _differences(
                found.get(name), wanted.get(name), f"{path}.{name}" if path else name
            )
        ]
    return [f"{path} was {found!r} and is now {wanted!r}"]
