"""Every trial in Optuna's storage, its per-example arrays in one .npz file beside it; nothing is pickled.

A trial is written once, when it has ended: first the arrays (temporary file, fsync, rename), then the
Optuna row in one transaction. So after `kill -9` a trial is there as a whole or not at all. Knows nothing of
how trials are chosen or trained.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from json import dumps, loads
from pathlib import Path
from types import FrameType
from typing import Any, Self
from urllib.parse import quote, quote_plus
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from loratune.errors import OutputError, ResourceError
from loratune.files.paths import disk_is_full, fullest_disk
from loratune.files.write import replacing
from loratune.metrics import find
from loratune.values import CurvePoint, HyperParameters, Trial, TrialResult, TrialState

_STATES = {
    TrialState.COMPLETE: optuna.trial.TrialState.COMPLETE,
    TrialState.DIVERGED: optuna.trial.TrialState.FAIL,
    TrialState.STOPPED: optuna.trial.TrialState.PRUNED,
}
_SCORE, _STEP_NLL, _GRADIENT_NORMS = "score.", "step_nll", "gradient_norms"
_FINGERPRINT = "fingerprint"
_FILE = "study.db"
_HIDDEN = "***"
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Study:
    """The trials and facts of one run directory. Open it with `Study.open` or `Study.load`."""

    def __init__(
        self, directory: Path, study: optuna.Study, metric: str, *, storage: str | None = None
    ) -> None:
        self.directory = directory
        self._study = study
        self._storage = storage
        self._metric = metric
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
    ) -> Self:
        """A new study, or with `resume` the one that is there; `storage` is any Optuna database URL.

        `fingerprint` holds everything that must be the same for the trials to be comparable (options, data,
        model), as JSON values. Raises `OutputError` where another study is in the way.
        """
        if not resume and (directory / "result.json").exists():
            raise _occupied(directory)
        with _storage_errors(directory, storage), _uninterrupted():
            if storage is None:
                directory.mkdir(parents=True, exist_ok=True)
            place = _storage(directory, storage)
            directory.mkdir(parents=True, exist_ok=True)
            direction = "maximize" if find(metric).info.larger_is_better else "minimize"
            study = _create(place, _name(directory, storage), direction)
            wanted = loads(dumps(dict(fingerprint)))
            found = study.user_attrs.get(_FINGERPRINT)
            if found is None:
                study.set_user_attr("metric", metric)
                study.set_user_attr(_FINGERPRINT, wanted)
            elif not resume:
                raise _occupied(directory)
            elif found != wanted:
                raise _changed(directory, found, wanted)
            return cls(directory, study, metric, storage=storage)

    @classmethod
    def find(cls, directory: Path, *, storage: str | None = None) -> Self | None:
        """The study that is there, or None. Raises `OutputError` where it is in a database that is not named."""
        if storage is None and not (directory / _FILE).exists():
            if (directory / "loratune.toml").exists():
                raise OutputError(
                    f"The study of {directory} is in a database elsewhere; name it by --storage URL."
                )
            return None
        with _storage_errors(directory, storage), _uninterrupted():
            place = _storage(directory, storage)
            try:
                study = optuna.load_study(storage=place, study_name=_name(directory, storage))
            except KeyError:
                return None
            return cls(directory, study, study.user_attrs.get("metric", "nll"), storage=storage)

    @classmethod
    def load(cls, directory: Path, *, storage: str | None = None) -> Self:
        """The study that is there, to be read. Raises `OutputError` where there is none."""
        study = cls.find(directory, storage=storage)
        if study is None:
            if storage is None:
                raise OutputError(f"A run directory must hold {_FILE}, but {directory} does not; tune first.")
            raise OutputError(
                f"The database of --storage must hold the study of {directory}, but does not; tune first."
            )
        return study

    def check(self, facts: Mapping[str, Any]) -> None:
        """Raise `OutputError` where the fingerprint has another value for one of these facts."""
        found = self._study.user_attrs.get(_FINGERPRINT)
        wanted = loads(dumps(dict(facts)))
        if found is not None and (kept := {name: found.get(name) for name in wanted}) != wanted:
            raise _changed(self.directory, kept, wanted)

    def record(self, result: TrialResult) -> None:
        """Keep a finished trial for good; a key that is already there is left as it is."""
        key = result.asked.key
        if key in self._recorded:
            return
        arrays = _arrays(result)
        value = find(self._metric).of(result) if result.finished else None
        parameters, distributions = _parameters(result.trial.hyper_parameters)
        row = optuna.trial.create_trial(
            state=_STATES[result.state],
            value=value,
            params=parameters,
            distributions=distributions,
            user_attrs=_attributes(result, tuple(arrays)),
            intermediate_values={point.step: point.validation_nll for point in result.curve},
        )
        with _storage_errors(self.directory, self._storage), _uninterrupted():
            if arrays:
                _write_arrays(self._array_file(key), arrays)
            self._study.add_trial(row)
        self._recorded.add(key)

    def results(self) -> list[TrialResult]:
        """All recorded trials, once per key, in the order of their recording.

        A trial whose array file is missing or unreadable is left out, so that it is trained again.
        """
        found: dict[str, TrialResult] = {}
        with _uninterrupted():
            rows = self._study.get_trials(deepcopy=False)
        for row in rows:
            if "asked" not in row.user_attrs:
                continue  # put there by somebody else, through Optuna
            arrays = self._read_arrays(row)
            if arrays is not None:
                result = _result(row, arrays)
                found[result.asked.key] = result
        return list(found.values())

    def put_fact(self, name: str, value: Any) -> None:
        """Keep a JSON value under a name, such as the calibration or the plan."""
        with _storage_errors(self.directory, self._storage), _uninterrupted():
            self._study.set_user_attr(name, value)

    def get_fact(self, name: str, default: Any = None) -> Any:
        """What `put_fact` kept, or the default."""
        return self._study.user_attrs.get(name, default)

    def _array_file(self, key: str) -> Path:
        return self.directory / "trials" / f"{key}.npz"

    def _read_arrays(self, row: FrozenTrial) -> dict[str, npt.NDArray[Any]] | None:
        names = row.user_attrs["arrays"]
        if not names:
            return {}
        try:
            with (
                self._array_file(row.user_attrs["key"]).open("rb") as file,
                np.load(file, allow_pickle=False) as stored,
            ):
                return {name: stored[name] for name in names}
        except (OSError, ValueError, KeyError, BadZipFile):
            return None


def _attributes(result: TrialResult, arrays: tuple[str, ...]) -> dict[str, Any]:
    """What Optuna has no column for; `optuna-dashboard` shows it beside the parameters."""
    asked, ran = result.asked, result.trial
    return {
        "key": asked.key,
        "stage": str(asked.stage),
        "seed": ran.seed,
        "fraction": ran.fraction,
        "epochs": ran.hyper_parameters.epochs,
        "target_modules": " ".join(ran.hyper_parameters.target_modules),
        "state": str(result.state),
        "message": result.message,
        "failure": result.failure,
        "nll": float(result.nll),
        "train_nll": float(result.train_nll),
        "metrics": {name: float(value) for name, value in result.metrics.items()},
        "curve": [[p.step, p.fraction, float(p.train_nll), float(p.validation_nll)] for p in result.curve],
        "trained_tokens": int(result.trained_tokens),
        "steps": int(result.steps),
        "cost": float(result.cost),
        "seconds": float(result.seconds),
        "arrays": list(arrays),
        "asked": asked.to_dict(),
        "ran": None if ran == asked else ran.to_dict(),
    }


def _result(row: FrozenTrial, arrays: Mapping[str, npt.NDArray[Any]]) -> TrialResult:
    """Inverse of `_attributes` and `_arrays`."""
    facts = row.user_attrs
    asked = Trial.from_dict(facts["asked"])
    return TrialResult(
        asked=asked,
        trial=asked if facts["ran"] is None else Trial.from_dict(facts["ran"]),
        state=TrialState(facts["state"]),
        nll=facts["nll"],
        train_nll=facts["train_nll"],
        metrics=facts["metrics"],
        curve=tuple(
            CurvePoint(step=step, fraction=fraction, train_nll=train, validation_nll=validation)
            for step, fraction, train, validation in facts["curve"]
        ),
        example_nll=arrays.get("nll"),
        step_nll=arrays.get(_STEP_NLL),
        gradient_norms=arrays.get(_GRADIENT_NORMS),
        example_scores={
            name.removeprefix(_SCORE): array for name, array in arrays.items() if name.startswith(_SCORE)
        },
        trained_tokens=facts["trained_tokens"],
        steps=facts["steps"],
        cost=facts["cost"],
        seconds=facts["seconds"],
        message=facts["message"],
        failure=facts.get("failure", ""),
    )


def _parameters(values: HyperParameters) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
    """Values and distributions by name: the widest ranges, the same for all trials, as importances need."""

    def real(value: float, low: float, high: float) -> tuple[float, BaseDistribution]:
        return value, FloatDistribution(min(low, value), max(high, value), log=low > 0)

    def whole(value: int, high: int) -> tuple[int, BaseDistribution]:
        return value, IntDistribution(1, max(high, value), log=True)

    pairs = {
        "r": whole(int(values.r), 1024),
        "lora_alpha": real(float(values.lora_alpha), 1e-2, 1e5),
        "learning_rate": real(values.learning_rate, 1e-7, 1.0),
        "batch_size": whole(int(values.batch_size), 4096),
        "lora_dropout": real(values.lora_dropout, 0.0, 1.0),
        "weight_decay": real(values.weight_decay, 0.0, 10.0),
    }
    return {name: value for name, (value, _) in pairs.items()}, {name: d for name, (_, d) in pairs.items()}


def _arrays(result: TrialResult) -> dict[str, npt.NDArray[Any]]:
    arrays = {_SCORE + name: np.asarray(array) for name, array in result.example_scores.items()}
    others = {
        "nll": result.example_nll,
        _STEP_NLL: result.step_nll,
        _GRADIENT_NORMS: result.gradient_norms,
    }
    return arrays | {name: np.asarray(array) for name, array in others.items() if array is not None}


def _write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        np.savez(file, **arrays)


def _storage(directory: Path, storage: str | None) -> optuna.storages.BaseStorage:
    """Raises SQLAlchemy's and optuna's own errors; `_storage_errors` translates them."""
    if storage is None:
        if "?" in str(directory):
            raise OutputError(f"--out must not contain '?', got {directory}; choose another --out.")
        # Optuna treats the URL as a format string for its schema's version
        storage = "sqlite:///" + str(directory / _FILE).replace("{", "{{").replace("}", "}}")
    return optuna.storages.get_storage(storage)


def _name(directory: Path, storage: str | None) -> str:
    """One study in our own file; in a shared database, one per name of a run directory."""
    return "loratune" if storage is None else f"loratune {directory.resolve().name}"


def masked(url: str) -> str:
    """A storage URL with its password and the values of its query hidden; all of it where it is no URL."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        return _HIDDEN
    if not _secrets(parsed):
        return url
    hidden = parsed.set(query=dict.fromkeys(parsed.query, _HIDDEN))
    return hidden.render_as_string(hide_password=True).replace(quote(_HIDDEN), _HIDDEN)


def has_secrets(url: str) -> bool:
    """Whether a storage URL holds what must not be written down: a password or a query."""
    try:
        return bool(_secrets(make_url(url)))
    except ArgumentError:
        return True


def _secrets(url: URL) -> list[str]:
    values = [url.password] if url.password else []
    for value in url.query.values():
        values += [value] if isinstance(value, str) else value
    return [each for each in values if each]


def _without_secrets(text: str, storage: str | None) -> str:
    """A driver's message without the passwords that it may repeat, plain or percent-encoded."""
    text = re.sub(r"//[^@\s]*@", f"//{_HIDDEN}@", text)
    if storage is None:
        return text
    text = text.replace(storage, masked(storage))
    try:
        secrets = _secrets(make_url(storage))
    except ArgumentError:
        return text
    for secret in secrets:
        for form in (secret, quote(secret, safe=""), quote_plus(secret)):
            text = text.replace(form, _HIDDEN)
    return text


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold signals back for the moment of a transaction: one left open would lock the database for the rest."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are handled in the main thread only
        return
    held: list[tuple[int, FrameType | None]] = []
    before = {
        each: signal.signal(each, lambda number, frame: held.append((number, frame)))
        for each in _STOPPING
        if callable(signal.getsignal(each))
    }
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        if held:
            before[signal.Signals(held[0][0])](*held[0])


@contextmanager
def _storage_errors(directory: Path, storage: str | None) -> Iterator[None]:
    """One sentence instead of a database's traceback, without the secrets of the URL."""
    try:
        yield
    except OutputError:
        raise
    except (SQLAlchemyError, StorageInternalError, ImportError, OSError, RuntimeError, ValueError) as error:
        if disk_is_full(error):
            raise ResourceError(
                f"The disk {fullest_disk(directory)} is full; free some space there."
            ) from error
        reason = _without_secrets(str(error.__cause__ or error).partition("\n")[0], storage)
        raise OutputError(
            f"The study of {directory} must be in a storage that can be written, but: {reason}; "
            "check --storage, or choose another --out."
        ) from None


def _occupied(directory: Path) -> OutputError:
    return OutputError(
        f"--out must not hold another study, but {directory} does; "
        "go on with it by --resume, or choose another --out."
    )


def _changed(directory: Path, found: Any, wanted: Any) -> OutputError:
    return OutputError(
        f"--resume needs the options, data and model that {directory} was started with, but "
        f"{_difference(found, wanted)}; restore them, or choose another --out."
    )


def _difference(found: Any, wanted: Any, path: str = "") -> str:
    """The first key at which two JSON values differ, with both values."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for name in sorted(found.keys() | wanted.keys()):
            if found.get(name) != wanted.get(name):
                return _difference(found.get(name), wanted.get(name), f"{path}.{name}" if path else name)
    return f"{path} was {found!r} and is now {wanted!r}"


def _create(place: optuna.storages.BaseStorage, name: str, direction: str) -> optuna.Study:
    """Create or load, without Optuna's message about it and without changing its verbosity for the caller."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(storage=place, study_name=name, direction=direction, load_if_exists=True)
    finally:
        optuna.logging.set_verbosity(verbosity)
