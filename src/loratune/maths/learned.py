"""Measured tasks, and the laws corrected by them: how far learning rate and rank of a new task deviate.

The package's tasks stand in `tables/tasks.csv`, their optima in `tables/optima.csv` (`bench/measured_tables.py`
reads them off a table of runs); append lines to both, and every prior and its interval follow by code.
"""

import csv
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from math import exp, log, log2

import numpy as np

from loratune.maths.curves import needed_rank
from loratune.maths.laws import learning_rate_law, rank_law
from loratune.maths.transfer import Belief, Calibration, Residual, Spread, believe, calibrate
from loratune.values import Optimum, StudiedTask


def _rows(name: str) -> list[dict[str, str]]:
    text = (files("loratune.maths") / "tables" / name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


@cache
def measured_tasks() -> tuple[StudiedTask, ...]:
    """All of them, those without optima (published without curves) included."""
    optima: dict[tuple[str, str], list[Optimum]] = defaultdict(list)
    for row in _rows("optima.csv"):
        optima[row["dataset"], row["model"]].append(
            Optimum(
                r=int(row["rank"]),
                lora_alpha=float(row["lora_alpha"]),
                batch_size=int(row["batch_size"]),
                learning_rate=float(row["learning_rate"]),
                nll=float(row["nll"] or "nan"),
                inside=row["inside"] == "1",
            )
        )
    return tuple(
        StudiedTask(
            dataset=row["dataset"],
            model=row["model"],
            family=row["family"],
            kind=row["kind"],
            hidden_size=int(row["hidden_size"]),
            parameters_per_rank=int(row["parameters_per_rank"]),
            rows=float(row["rows"]),
            epochs=float(row["epochs"]),
            supervised_tokens=int(row["supervised_tokens"]),
            labels=int(row["labels"]),
            needed_rank=float(row["needed_rank"]),
            source=row["source"],
            optima=tuple(optima[row["dataset"], row["model"]]),
        )
        for row in _rows("tasks.csv")
    )


RATE_SPREAD = Spread(level=0.2, dataset=0.5, family=0.4, own=0.15)
"""Spread of ln(measured / law); dataset and family as in §8 of the survey."""
RANK_SPREAD = Spread(level=0.3, dataset=0.5, family=0.4, kind=0.9, slopes=(0.3, 0.2), own=0.8)
"""Slopes per ln(parameters per rank) and ln(supervised tokens). `own` is as large as the measured tasks make it most
likely: what a task needs beyond what any other tells."""

_PARAMETERS, _TOKENS = (3e5, 1.3e7), (1e4, 5e7)
"""Ranges of the measured tasks: parameters per rank, supervised tokens."""

LEDGER = "ledger"
"""`StudiedTask.source` of what the user's ledger has."""
_LEAST_LIKE = 0.1
"""Weight below which a study is left out."""
_INSIDE_SD, _EDGE_SD = 0.2, 0.6
"""A learning rate read off a curve with a minimum; one at the edge of what was tried."""
_CURVE_SD, _STATED_SD = 0.35, 0.7
"""A rank read off a curve; one that was stated, or bounded from one side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Learned:
    """What measured tasks say about one number of a new task."""

    belief: Belief
    """ln(truth / law)."""
    calibration: Calibration

    @property
    def factor(self) -> float:
        """Factor on the law's value."""
        return exp(self.belief.mean)

    def interval(self, law: float) -> tuple[float, float, float]:
        """(value, low, high) for the law's value; the width is the calibrated one."""
        half = self.calibration.factor * self.belief.sd
        return law * self.factor, law * exp(self.belief.mean - half), law * exp(self.belief.mean + half)


def law_rate(task: StudiedTask, *, r: float, lora_alpha: float, batch_size: float) -> float:
    """The law's learning rate for a full run of this task."""
    return learning_rate_law(
        r=r,
        lora_alpha=lora_alpha,
        batch_size=batch_size,
        rows=task.rows,
        epochs=task.epochs,
        hidden_size=task.hidden_size,
        family=task.family,
    ).value


def law_rank(task: StudiedTask) -> float:
    """The law's rank for this task."""
    return rank_law(
        supervised_tokens=task.supervised_tokens,
        parameters_per_rank=task.parameters_per_rank,
        family=task.family,
        labels=task.labels,
        rows=task.rows,
        hidden_size=task.hidden_size,
    ).value


def learn_rate(target: StudiedTask, tasks: Sequence[StudiedTask]) -> Learned:
    """What the tasks say of the learning rate: one number for all ranks and batch sizes, whose slopes are the law's."""
    return _learn(target, rate_residuals(tasks, target), RATE_SPREAD)


def learn_rank(target: StudiedTask, tasks: Sequence[StudiedTask]) -> Learned:
    """What the tasks say of the smallest rank within the default margin of a large one."""
    return _learn(target, rank_residuals(tasks, target), RANK_SPREAD)


def likeness(task: StudiedTask, target: StudiedTask) -> float:
    """Weight of a study of the ledger for another task: halved by each factor of 2 in width, of 4 in rows.

    A toy or a demo then says nothing of a large model, and much of its like. A judgement: the ledger is the user's own,
    and nobody has measured what a hundredfold difference does. Others (the package's tasks, what the user names) count
    in full, as their spread was calibrated together; so does what is not known.
    """
    if task.source != LEDGER:
        return 1.0
    doublings = 0.0
    for one, other, scale in ((task.hidden_size, target.hidden_size, 1.0), (task.rows, target.rows, 2.0)):
        if one and other:
            doublings += abs(log2(one / other)) / scale
    weight = 2.0**-doublings
    return weight if weight >= _LEAST_LIKE else 0.0


def _learn(target: StudiedTask, residuals: Sequence[Residual], spread: Spread) -> Learned:
    wanted = _residual(target)
    return Learned(
        belief=believe(residuals, wanted, spread), calibration=calibrate(residuals, wanted, spread)
    )


def rate_residuals(tasks: Sequence[StudiedTask], target: StudiedTask | None = None) -> list[Residual]:
    """One per task with optima: the mean over its ranks and batch sizes, those inside their curve if there are any."""
    found = []
    for task, weight in _weighted(tasks, target):
        inside = [each for each in task.optima if each.inside]
        logs = [
            log(
                each.learning_rate
                / law_rate(task, r=each.r, lora_alpha=each.lora_alpha, batch_size=each.batch_size)
            )
            for each in inside or task.optima
        ]
        if logs and task.rows:
            found.append(
                _residual(task, float(np.mean(logs)), (_INSIDE_SD if inside else _EDGE_SD) / weight**0.5)
            )
    return found


def rank_residuals(tasks: Sequence[StudiedTask], target: StudiedTask | None = None) -> list[Residual]:
    """One per dense task whose needed rank was stated or can be read off its curve."""
    found = []
    for task, weight in _weighted(tasks, target):
        rank = task.needed_rank or needed_rank(task.optima)
        if rank and task.parameters_per_rank:
            sd = (_STATED_SD if task.needed_rank else _CURVE_SD) / weight**0.5
            found.append(_residual(task, log(rank / law_rank(task)), sd))
    return found


def _weighted(
    tasks: Sequence[StudiedTask], target: StudiedTask | None
) -> Iterator[tuple[StudiedTask, float]]:
    """Tasks that say anything of the target, with their weights; in full where there is none."""
    for task in tasks:
        weight = 1.0 if target is None else likeness(task, target)
        if weight:
            yield task, weight


def _residual(task: StudiedTask, value: float = 0.0, sd: float = 0.0) -> Residual:
    """Features lie within what has been measured: slopes are not carried beyond. An unknown one is at the centre."""
    parameters = min(max(task.parameters_per_rank or 1e6, _PARAMETERS[0]), _PARAMETERS[1])
    tokens = min(max(task.supervised_tokens or 1e6, _TOKENS[0]), _TOKENS[1])
    return Residual(
        value=value,
        dataset=task.dataset,
        family=task.family,
        kind=task.kind,
        features=(log(parameters / 1e6), log(tokens / 1e6)),
        sd=sd,
    )
