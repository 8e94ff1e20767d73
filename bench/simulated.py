"""Runs trials by looking them up in a table of measured results instead of training a model.

Snapping: ranks never; learning rate, then batch size, then alpha to the nearest cell in log space, seeds in
turn, the fraction to the nearest. One grid step above a rank's highest learning rate stands a cell that
diverged. Rows with equal keys are repeats and pooled. A cell that was run before costs nothing, so a dimension
with one value is free.
"""

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import exp, inf, isfinite, log, nan
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from instant import InstantRunner
from loratune.errors import DataError
from loratune.values import (
    NLL_MARGIN,
    DataFacts,
    HyperParameters,
    ModelFacts,
    RunLimits,
    SearchContext,
    Trial,
    TrialResult,
    TrialState,
    Wishes,
)

COLUMNS = (
    "task",
    "rank",
    "lora_alpha",
    "learning_rate",
    "batch_size",
    "seed",
    "epochs",
    "fraction",
    "val_nll",
    "val_exact_match",
)
NOMINAL_ROWS = 10_000
"""Tables do not say how many rows were trained on; costs are relative, so the laws alone see this figure."""
ROUNDED = 0.01
"""Relative difference between a run's loss and the mean over its rows that a table's rounding explains."""
LARGE_MODEL_NOISE = 3e-4
"""Relative sd between reruns that is assumed where a table repeats nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One measured value."""

    rank: int
    learning_rate: float
    batch_size: int
    lora_alpha: float
    seed: int
    fraction: float
    epochs: float
    nll: float
    exact_match: float
    repeats: tuple[float, ...] = ()


def read_table(path: Path) -> dict[str, tuple[Cell, ...]]:
    """The cells of each task. Raises `DataError` where file or column is missing or a value is not a number."""
    if not path.is_file():
        raise DataError(f"The table {path} does not exist; give the path of a CSV file with --table.")
    pooled: dict[tuple[str, ...], list[Cell]] = defaultdict(list)
    with path.open(newline="") as file:
        rows = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
        if missing:
            raise DataError(f"The table {path} lacks the columns {', '.join(missing)}; add them.")
        for row in rows:
            try:
                cell = _cell(row)
            except ValueError as error:
                raise DataError(f"{path}, line {rows.line_num}: {error}; correct the value.") from None
            pooled[(row["task"], *(row[name] for name in COLUMNS[1:8]))].append(cell)
    tasks: dict[str, list[Cell]] = defaultdict(list)
    for key, cells in pooled.items():
        values = [cell.nll for cell in cells]
        matches = [cell.exact_match for cell in cells]
        tasks[key[0]].append(
            replace(
                cells[0],
                nll=float(np.mean(values)),
                exact_match=float(np.mean(matches)),
                repeats=tuple(values),
            )
        )
    return {task: tuple(cells) for task, cells in tasks.items()}


def _cell(row: Mapping[str, str]) -> Cell:
    return Cell(
        rank=int(row["rank"]),
        learning_rate=float(row["learning_rate"]),
        batch_size=int(row["batch_size"]),
        lora_alpha=float(row["lora_alpha"]),
        seed=int(row["seed"]),
        fraction=float(row["fraction"]),
        epochs=float(row["epochs"]),
        nll=float(row["val_nll"]) if row["val_nll"] else inf,
        exact_match=float(row["val_exact_match"]) if row["val_exact_match"] else nan,
    )


Examples = Mapping[tuple[float, float, float, float], npt.NDArray[np.float64]]
"""[rows] NLL of each validation row by (rank, learning rate, batch size, seed)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MeasuredTask:
    """One task of a table."""

    name: str
    cells: tuple[Cell, ...]
    noise: float
    """Relative sd between reruns that is assumed where no cell has several seeds."""
    examples: Examples


def read_tasks(path: Path) -> dict[str, MeasuredTask]:
    """All tasks of a table with the per-example values beside it. Raises `DataError` as `read_table` does."""
    tasks = read_table(path)
    noise = _rerun_noise(tasks.values())
    examples = path.with_name(f"{path.stem}_per_example_nll.npz")
    return {
        name: MeasuredTask(
            name=name, cells=cells, noise=noise, examples=_per_token(_per_example(examples, name), cells)
        )
        for name, cells in tasks.items()
    }


class TableRunner:
    """Runs trials by looking them up; remembers which cells were paid for."""

    def __init__(self, task: MeasuredTask) -> None:
        self.task = task.name
        self.cells = task.cells
        self.noise = task.noise
        self.examples = task.examples
        self.paid: set[str] = set()
        rates = sorted({cell.learning_rate for cell in self.cells})
        gaps = [log(high / low) for low, high in pairwise(rates)]
        self.half_step = exp(float(np.median(gaps)) / 2) if gaps else 1.0

    @classmethod
    def open(cls, table: Path, task: str) -> Self:
        """One task of a table. Raises `DataError` for a table that cannot be read or a task not in it."""
        tasks = read_tasks(table)
        if task not in tasks:
            raise DataError(f"The task {task!r} is not in {table}; choose one of {', '.join(sorted(tasks))}.")
        return cls(tasks[task])

    @property
    def full(self) -> tuple[Cell, ...]:
        """The cells read at the end of their run."""
        end = max(cell.fraction for cell in self.cells)
        return tuple(cell for cell in self.cells if cell.fraction > end - 1e-6)

    def context(self, *, margin: float = NLL_MARGIN, budget: float = 5.0, seed: int = 0) -> SearchContext:
        """What the table lets a strategy know and try."""
        alphas = {cell.lora_alpha for cell in self.cells}
        ratios = {cell.lora_alpha / cell.rank for cell in self.cells}
        seeds = len({cell.seed for cell in self.cells})
        weights = None
        if self.examples:
            weights = np.ones(len(next(iter(self.examples.values()))))
        best = min(cell.nll for cell in self.full)
        return SearchContext(
            data=DataFacts(
                rows=NOMINAL_ROWS,
                tokens=100 * NOMINAL_ROWS,
                supervised_tokens=0,
                validation_weights=weights,
            ),
            model=ModelFacts(largest_rank=max(cell.rank for cell in self.cells)),
            limits=RunLimits(
                largest_batch=max(cell.batch_size for cell in self.cells),
                smallest_fraction=min(cell.fraction for cell in self.cells),
                seeds=seeds,
                seed_sd=self.noise * best if seeds == 1 else None,
            ),
            wishes=Wishes(
                epochs=max(cell.epochs for cell in self.cells),
                ranks=tuple(sorted({cell.rank for cell in self.cells})),
                batch_sizes=tuple(sorted({cell.batch_size for cell in self.cells})),
                lora_alpha=alphas.pop() if len(alphas) == 1 else None,
                alpha_ratios=tuple(sorted(ratios)) if len(ratios) < len(alphas) + 1 else (),
                margin=margin,
                seed=seed,
                budget=budget,
            ),
        )

    def run(self, trials: Iterable[Trial], context: SearchContext) -> tuple[TrialResult, ...]:
        """Looks each trial up. Raises `DataError` for a rank that the table lacks."""
        return tuple(self._run(trial, context) for trial in trials)

    def on(self, context: SearchContext) -> InstantRunner:
        """The table as a `Runner` of trials in this context."""
        return InstantRunner(measure=lambda trials: self.run(trials, context))

    def _run(self, trial: Trial, context: SearchContext) -> TrialResult:
        cell = self.snap(trial.hyper_parameters, trial.seed, trial.fraction)
        told = trial
        if cell is not None:
            setting = replace(
                trial.hyper_parameters,
                learning_rate=cell.learning_rate,
                batch_size=cell.batch_size,
                lora_alpha=cell.lora_alpha,
                epochs=cell.epochs,
            )
            told = replace(trial, hyper_parameters=setting, seed=cell.seed, fraction=min(cell.fraction, 1.0))
        cost = 0.0 if told.key in self.paid else context.cost(told)
        self.paid.add(told.key)
        if cell is None or not isfinite(cell.nll):
            return TrialResult(
                asked=trial,
                trial=told,
                state=TrialState.DIVERGED,
                cost=cost,
                message="diverged: above the highest learning rate that the table has at this rank",
            )
        metrics = {"nll": cell.nll, "perplexity": exp(min(cell.nll, 700.0))}
        if isfinite(cell.exact_match):
            metrics["exact_match"] = cell.exact_match
        return TrialResult(
            asked=trial,
            trial=told,
            nll=cell.nll,
            metrics=metrics,
            example_nll=self._example_nll(cell),
            cost=cost,
        )

    def snap(self, setting: HyperParameters, seed: int = 0, fraction: float = 1.0) -> Cell | None:
        """The cell that stands for a setting; None above the rank's highest learning rate."""
        cells = [cell for cell in self.cells if cell.rank == setting.r]
        if not cells:
            known = sorted({cell.rank for cell in self.cells})
            raise DataError(
                f"The table has no rank {setting.r} for {self.task}; choose one of {known}: ranks never snap."
            )
        if setting.learning_rate > max(cell.learning_rate for cell in cells) * self.half_step:
            return None
        for name, value in (
            ("learning_rate", setting.learning_rate),
            ("batch_size", float(setting.batch_size)),
            ("lora_alpha", setting.lora_alpha),
        ):
            values = sorted({float(getattr(cell, name)) for cell in cells})
            near = min(values, key=lambda other: abs(log(other / value)))
            cells = [cell for cell in cells if float(getattr(cell, name)) == near]
        seeds = sorted({cell.seed for cell in cells})
        cells = [cell for cell in cells if cell.seed == seeds[seed % len(seeds)]]
        return min(cells, key=lambda cell: abs(cell.fraction - fraction))

    def _example_nll(self, cell: Cell) -> npt.NDArray[np.float64] | None:
        if cell.fraction < max(other.fraction for other in self.cells) - 1e-6:
            return None
        rows = self.examples.get((cell.rank, cell.learning_rate, cell.batch_size, cell.seed))
        if rows is None or abs(float(rows.mean()) - cell.nll) > ROUNDED * abs(cell.nll):
            return None  # of another alpha, which the keys do not tell
        return rows


def _per_example(path: Path, task: str) -> dict[tuple[float, float, float, float], npt.NDArray[np.float64]]:
    """[rows] NLL of each validation row by (rank, learning rate, batch size, seed); empty without the file.

    Keys are `rank=…,learning_rate=…,batch_size=…,seed=…`, with `task=…` where a table has several.
    """
    if not path.is_file():
        return {}
    found = {}
    with np.load(path, allow_pickle=False) as arrays:
        for key in arrays.files:
            facts = dict(part.split("=", 1) for part in key.split(","))
            if facts.get("task", task) == task:
                names = ("rank", "learning_rate", "batch_size", "seed")
                rank, rate, batch, seed = (float(facts[name]) for name in names)
                found[(rank, rate, batch, seed)] = arrays[key].astype(np.float64)
    return found


def _per_token(examples: Examples, cells: Sequence[Cell]) -> Examples:
    """Values whose mean over the rows is the table's NLL: a file may hold sums over each row's tokens.

    Divided by the ratio of the means, the tokens of an average row; within 1 % of 1 they are means already.
    """
    last = max(cell.fraction for cell in cells)
    ratios = [
        float(examples[key].mean()) / cell.nll
        for cell in cells
        if cell.fraction == last
        and 0 < cell.nll < inf
        and (key := (cell.rank, cell.learning_rate, cell.batch_size, cell.seed)) in examples
    ]
    tokens = float(np.median(ratios)) if ratios else 1.0
    if abs(tokens - 1) < 0.01:
        return examples
    return {key: values / tokens for key, values in examples.items()}


def _rerun_noise(tasks: Iterable[Sequence[Cell]]) -> float:
    """Relative sd of repeated rows: the median of the groups' sds, scaled as for a normal; else assumed."""
    spreads = [
        float(np.std(cell.repeats, ddof=1) / np.mean(cell.repeats))
        for cells in tasks
        for cell in cells
        if len(cell.repeats) > 1
    ]
    return float(np.median(spreads)) / 0.6745 if spreads else LARGE_MODEL_NOISE
