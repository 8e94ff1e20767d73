"""A trial's result as a row of Optuna's storage and as arrays, and back.

What Optuna's tools show is made for people: real times, an attribute for each fact; what only we read has one name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from numbers import Real
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from loratune.files.write import make_folder, replacing
from loratune.metrics import find
from loratune.values import CurvePoint, HyperParameters, Trial, TrialResult, TrialState
from loratune.values.plain import to_plain

_STATES = {
    TrialState.COMPLETE: optuna.trial.TrialState.COMPLETE,
    TrialState.DIVERGED: optuna.trial.TrialState.FAIL,
    TrialState.STOPPED: optuna.trial.TrialState.PRUNED,
}
_KEY = re.compile(r"[0-9a-f]{16}")
_OURS = "loratune"
"""The attribute of what only we read."""
_SCORE, _STEP_NLL, _GRADIENT_NORMS = "score.", "step_nll", "gradient_norms"

Arrays = Mapping[str, npt.NDArray[Any]]


class DamagedRow(Exception):
    """A row or its arrays are not what was written; the trial is to be trained again."""


def row_of(result: TrialResult, arrays: tuple[str, ...], metric: str) -> FrozenTrial:
    """What Optuna keeps of a result; `arrays`: names of those beside it, `metric`: the value of a finished trial."""
    value = find(metric).of(result) if result.finished else None
    parameters, distributions = _parameters(result.trial.hyper_parameters)
    row = optuna.trial.create_trial(
        state=_state(result),
        value=value,
        params=parameters,
        distributions=distributions,
        user_attrs=_attributes(result, arrays),
        intermediate_values={point.step: point.validation_nll for point in result.curve},
    )
    if result.ended:
        row.datetime_start = datetime.fromtimestamp(result.began)  # local and naive, as Optuna's own
        row.datetime_complete = datetime.fromtimestamp(result.ended)
    return row


def _state(result: TrialResult) -> optuna.trial.TrialState:
    """A trial on part of the rows does not compare with those on all: pruned ones are left out of Optuna's importances
    and never its best.
    """
    partial = result.finished and result.trial.fraction < 1
    return optuna.trial.TrialState.PRUNED if partial else _STATES[result.state]


def _attributes(result: TrialResult, arrays: tuple[str, ...]) -> dict[str, Any]:
    """What Optuna has no column for; `optuna-dashboard` shows it beside the parameters."""
    asked, ran = result.asked, result.trial
    texts = {"message": result.message, "failure": result.failure}
    metrics = {name: float(value) for name, value in result.metrics.items()}
    return {
        **metrics,
        "stage": str(asked.stage),
        "seed": ran.seed,
        "rows": "all" if ran.fraction == 1 else f"{100 * ran.fraction:.3g} %",
        "fraction": ran.fraction,
        "epochs": ran.hyper_parameters.epochs,
        "target_modules": " ".join(ran.hyper_parameters.target_modules),
        "state": str(result.state),
        **{name: text for name, text in texts.items() if text},
        "nll": float(result.nll),
        "train_nll": float(result.train_nll),
        "trained_tokens": int(result.trained_tokens),
        "steps": int(result.steps),
        "cost": float(result.cost),
        "seconds": float(result.seconds),
        _OURS: {
            "key": asked.key,
            "asked": to_plain(asked),
            "ran": None if ran == asked else to_plain(ran),
            "metrics": metrics,
            "curve": [
                [p.step, p.fraction, float(p.train_nll), float(p.validation_nll)] for p in result.curve
            ],
            "arrays": list(arrays),
        },
    }


def is_ours(row: FrozenTrial) -> bool:
    """Whether we have put it there, and not somebody else through Optuna."""
    return _OURS in row.user_attrs or "asked" in row.user_attrs


def _facts(row: FrozenTrial) -> dict[str, Any]:
    """All attributes side by side, as up to format 2 they were; damaged ones as they are."""
    ours = row.user_attrs.get(_OURS)
    return {**row.user_attrs, **(ours if isinstance(ours, dict) else {})}


def result_of(row: FrozenTrial, arrays: Callable[[str, Sequence[str]], Arrays]) -> TrialResult:
    """Inverse of `row_of` and `arrays_of`; `arrays` reads those of a key by their names.

    Raises `DamagedRow` with the key where anything is not what was written.
    """
    facts = _facts(row)
    try:
        asked = Trial.from_dict(facts["asked"])
        kept = str(facts.get("key"))  # versions that wrote 16 as 16.0 had other keys
        key = kept if _KEY.fullmatch(kept) else asked.key
        return _result(asked, facts, _times(row), arrays(key, facts["arrays"]))
    except Exception:  # whatever reading makes of what is no longer what was written
        raise DamagedRow(str(facts.get("key"))) from None


def plain_result(result: TrialResult) -> dict[str, Any]:
    """A result as JSON values without its arrays; they are `arrays_of` it."""
    facts = _attributes(result, ())
    return {**facts, **facts.pop(_OURS), "began": result.began, "ended": result.ended}


def result_of_plain(values: Mapping[str, Any], arrays: Arrays) -> TrialResult:
    """Inverse of `plain_result`. Raises `KeyError`, `TypeError` or `ValueError` for other values."""
    times = _number(values["began"]), _number(values["ended"])
    return _result(Trial.from_dict(values["asked"]), values, times, arrays)


def _times(row: FrozenTrial) -> tuple[float, float]:
    """Begin and end; of a trial without them Optuna has noted the moment of its recording for both."""
    began, ended = row.datetime_start, row.datetime_complete
    if began is None or ended is None or began == ended:
        return 0.0, 0.0
    return began.timestamp(), ended.timestamp()


def _result(
    asked: Trial, facts: Mapping[str, Any], times: tuple[float, float], arrays: Arrays
) -> TrialResult:
    return TrialResult(
        asked=asked,
        trial=asked if facts["ran"] is None else Trial.from_dict(facts["ran"]),
        state=TrialState(facts["state"]),
        nll=_number(facts["nll"]),
        train_nll=_number(facts["train_nll"]),
        metrics={name: _number(value) for name, value in facts["metrics"].items()},
        curve=tuple(
            CurvePoint(step=step, fraction=fraction, train_nll=train, validation_nll=validation)
            for step, fraction, train, validation in (map(_number, point) for point in facts["curve"])
        ),
        example_nll=arrays.get("nll"),
        step_nll=arrays.get(_STEP_NLL),
        gradient_norms=arrays.get(_GRADIENT_NORMS),
        example_scores={
            name.removeprefix(_SCORE): array for name, array in arrays.items() if name.startswith(_SCORE)
        },
        trained_tokens=_number(facts["trained_tokens"]),
        steps=_number(facts["steps"]),
        cost=_number(facts["cost"]),
        seconds=_number(facts["seconds"]),
        began=times[0],
        ended=times[1],
        message=str(facts.get("message", "")),
        failure=str(facts.get("failure", "")),
    )


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"a number, got {value!r}")
    return value


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


def arrays_of(result: TrialResult) -> dict[str, npt.NDArray[Any]]:
    """Arrays per validation row and per step, by name."""
    arrays = {_SCORE + name: np.asarray(array) for name, array in result.example_scores.items()}
    others = {
        "nll": result.example_nll,
        _STEP_NLL: result.step_nll,
        _GRADIENT_NORMS: result.gradient_norms,
    }
    return arrays | {name: np.asarray(array) for name, array in others.items() if array is not None}


def write_arrays(path: Path, arrays: Arrays) -> None:
    """One .npz file, whole or not at all."""
    make_folder(path.parent)
    with replacing(path) as file:
        np.savez(file, **cast(Any, arrays))


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """The arrays of `write_arrays`, numbers, of which a row may have several.

    Raises whatever numpy and zipfile do of a damaged file.
    """
    if not names:
        return {}
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in names}
    if any(array.ndim not in (1, 2) or array.dtype.kind not in "fiub" for array in arrays.values()):
        raise ValueError("arrays of numbers, one for each row or step")
    return arrays
