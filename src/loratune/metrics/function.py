"""A user's function as a metric: predictions and references, both as text, to a score for each row."""

import copy
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from loratune.errors import InputError
from loratune.metrics.base import Floats, Metric, Outputs
from loratune.metrics.info import NATS, POINTS, MetricInfo, Needs
from loratune.metrics.names import GENERATED

RowFunction = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""Predictions [rows] and references [rows] → scores [rows]."""
_SHOWN = 60


class FunctionMetric(Metric):
    """What `metric` makes of a function; calling it calls the function."""

    def __init__(self, function: RowFunction, info: MetricInfo, needs: Needs = Needs.TEXT) -> None:
        self.function = function
        self.info = info
        self.needs = needs

    def __call__(self, predictions: Sequence[str], references: Sequence[str]) -> Sequence[float]:
        return self.function(predictions, references)

    def scores(self, outputs: Outputs) -> Floats | None:
        """Raises `InputError` where the function fails or returns anything but a finite score for each row."""
        texts = outputs.generated if self.needs is Needs.GENERATION else outputs.texts
        if texts is None or outputs.references is None:
            return None
        return self._checked(list(texts), list(outputs.references))

    def _checked(self, texts: list[str], references: list[str]) -> Floats:
        asked, rows = f"--metric {self.name} must return a finite score for each row", len(texts)
        try:
            found = np.asarray(self.function(texts, references), dtype=np.float64)
        except (Exception, SystemExit) as error:
            raise InputError(f"{asked}, but failed on {rows} rows with {_said(error)}.") from error
        if found.shape != (rows,):
            shape = f"shape {found.shape}" if found.ndim != 1 else f"{len(found)} scores"
            raise InputError(f"{asked}, but gave {shape} for {rows} rows; return a list of {rows} numbers.")
        low, high = (0.0, 1.0) if self.info.unit == POINTS else (-np.inf, np.inf)
        if not np.isfinite(found).all():
            row = int(np.argmin(np.isfinite(found)))
            raise InputError(
                f"{asked}, but gave {found[row]} for the prediction {_short(texts[row])} of "
                f"{_short(references[row])}; score such a row with a number, such as the worst one."
            )
        if (found < low).any() or (found > high).any():
            row = int(np.argmax((found < low) | (found > high)))
            raise InputError(
                f"--metric {self.name} must score each row from 0 to 1 (its unit is points), but gave "
                f"{found[row]:g}; divide by the most a row can have, or name its unit: "
                "@metric(unit=..., margin=...) of loratune.metrics."
            )
        return found


def metric(
    function: RowFunction | None = None,
    *,
    larger_is_better: bool = True,
    unit: str = POINTS,
    margin: float | None = None,
    title: str | None = None,
    generated: bool = False,
) -> Any:
    """Decorator that says how a function's scores are read.

    Args:
        function: predictions and references of rows, as text → a score for each row.
        larger_is_better: whether a larger score is a better one.
        unit: what differences are given in. `points`: scores lie in [0, 1], and a point is a hundredth.
        margin: tolerated loss for a cheaper choice, in `unit`; must be given unless the unit is points (then 1).
        title: its name in sentences; the function's own where there is none.
        generated: whether predictions are what the model writes by itself after each prompt, not its most likely
            tokens after the true ones. That costs far more; see docs/generated-text.md.

    Raises `InputError` for a unit or margin that cannot be.
    """

    def decorate(function: RowFunction) -> FunctionMetric:
        name = address_of(function)
        tolerated = margin if margin is not None or unit != POINTS else 1.0
        if unit == NATS or not unit.strip():
            raise InputError(
                f"the unit of {name} must be its own or points, got {unit!r}; name what it counts."
            )
        if tolerated is None or not tolerated > 0:
            raise InputError(
                f"{name} must have a margin above 0, got {tolerated} {unit}; give @metric(margin=...), the loss "
                "that you tolerate for a cheaper choice."
            )
        info = MetricInfo(
            name=name,
            title=title or _title(name),
            unit=unit,
            larger_is_better=larger_is_better,
            margin=tolerated,
        )
        return FunctionMetric(function, info, Needs.GENERATION if generated else Needs.TEXT)

    return decorate if function is None else decorate(function)


def as_metric(value: Any, name: str | None = None) -> Metric:
    """A metric, or a function with the defaults of `metric`, under a name. Raises `InputError` for other values."""
    if isinstance(value, Metric):
        found = value
    elif callable(value) and not isinstance(value, type):
        found = metric(value)
    else:
        raise InputError(
            f"--metric {name or repr(value)} must be a function of predictions and references, got "
            f"{_short(repr(value))}; give package.module:function."
        )
    if name is None or found.name == name:
        return found
    renamed = copy.copy(found)
    renamed.info = replace(found.info, name=name)
    return renamed


def address_of(function: Any) -> str:
    """`package.module:function`."""
    kind = function if hasattr(function, "__qualname__") else type(function)
    return f"{kind.__module__}:{kind.__qualname__}"


def source_digest(metric: Metric) -> str | None:
    """16 hex digits over the source of a user's function or class; None where Python does not have it."""
    subject: Any = metric.function if isinstance(metric, FunctionMetric) else type(metric)
    try:
        source = inspect.getsource(subject)
    except (OSError, TypeError):
        return None
    return blake2b(source.encode(), digest_size=8).hexdigest()


def load(name: str) -> Metric:
    """Import the metric that the user named as `package.module:function`; modules may lie in the current folder.

    After `generated:` it is given generated text. Raises `InputError` where it cannot be imported or is no metric.
    """
    module_name, _, attribute = name.removeprefix(GENERATED).partition(":")
    with _current_folder():
        try:
            found: Any = importlib.import_module(module_name)
        except (Exception, SystemExit) as error:
            raise InputError(
                f"--metric {name} must be importable, but importing {module_name} failed with {_said(error)}; "
                "give package.module:function of an installed package or of the current folder."
            ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise InputError(
                f"--metric {name} must name a function of {module_name}, but it has no {part!r}; "
                "give one that it has."
            )
        found = getattr(found, part)
    loaded = as_metric(found, name)
    if name.startswith(GENERATED):
        if not isinstance(loaded, FunctionMetric):
            raise InputError(
                f"--metric {name} must name a function of predictions and references, got {type(loaded).__name__}; "
                f"leave {GENERATED!r} out."
            )
        loaded = copy.copy(loaded)
        loaded.needs = Needs.GENERATION
    return loaded


@contextmanager
def _current_folder() -> Iterator[None]:
    """Modules of the current folder can be imported, after all installed ones."""
    folder = str(Path.cwd())
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _title(name: str) -> str:
    return name.rpartition(":")[2].rpartition(".")[2].strip("<>").replace("_", " ")


def _said(error: BaseException) -> str:
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {_short(words)}" if words else type(error).__name__


def _short(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= _SHOWN else f"{plain[:_SHOWN]}…"
