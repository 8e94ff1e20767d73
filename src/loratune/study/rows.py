"""A trial's result as a row of Optuna's storage and as arrays, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from loratune.files.write import replacing
from loratune.metrics import find
from loratune.values import CurvePoint, HyperParameters, Trial, TrialResult, TrialState

_STATES = {
    TrialState.COMPLETE: optuna.trial.TrialState.COMPLETE,
    TrialState.DIVERGED: optuna.trial.TrialState.FAIL,
    TrialState.STOPPED: optuna.trial.TrialState.PRUNED,
}
_SCORE, _STEP_NLL, _GRADIENT_NORMS = "score.", "step_nll", "gradient_norms"

Arrays = Mapping[str, npt.NDArray[Any]]


class DamagedRow(Exception):
    """A row or its arrays are not what was written; the trial is to be trained again."""


def row_of(result: TrialResult, arrays: tuple[str, ...], metric: str) -> FrozenTrial:
    """What Optuna keeps of a result; `arrays`: names of those beside it, `metric`: the value of a finished trial."""
    value = find(metric).of(result) if result.finished else None
    parameters, distributions = _parameters(result.trial.hyper_parameters)
    return optuna.trial.create_trial(
        state=_STATES[result.state],
        value=value,
        params=parameters,
        distributions=distributions,
        user_attrs=_attributes(result, arrays),
        intermediate_values={point.step: point.validation_nll for point in result.curve},
    )


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


def result_of(row: FrozenTrial, arrays: Callable[[str, Sequence[str]], Arrays]) -> TrialResult:
    """Inverse of `row_of` and `arrays_of`; `arrays` reads those of a key by their names.

    Raises `DamagedRow` with the key where anything is not what was written.
    """
    facts = row.user_attrs
    try:
        asked = Trial.from_dict(facts["asked"])
        return _result(asked, facts, arrays(asked.key, facts["arrays"]))
    except Exception:  # whatever reading makes of what is no longer what was written
        raise DamagedRow(str(facts.get("key"))) from None


def _result(asked: Trial, facts: Mapping[str, Any], arrays: Arrays) -> TrialResult:
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
        message=str(facts["message"]),
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
    """Per validation row and per step, by name."""
    arrays = {_SCORE + name: np.asarray(array) for name, array in result.example_scores.items()}
    others = {
        "nll": result.example_nll,
        _STEP_NLL: result.step_nll,
        _GRADIENT_NORMS: result.gradient_norms,
    }
    return arrays | {name: np.asarray(array) for name, array in others.items() if array is not None}


def write_arrays(path: Path, arrays: Arrays) -> None:
    """One .npz file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        np.savez(file, **cast(Any, arrays))


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Those of `write_arrays`, one-dimensional numbers. Raises whatever numpy and zipfile do of a damaged file."""
    if not names:
        return {}
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in names}
    if any(array.ndim != 1 or array.dtype.kind not in "fiub" for array in arrays.values()):
        raise ValueError("arrays of numbers, one for each row or step")
    return arrays
