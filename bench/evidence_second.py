"""A second family for `docs/evidence.md`: the best learning rate by rank of Gemma-3-270M on few rows of banking77.

PYTHONPATH=src:bench python bench/evidence_second.py --model FOLDER --tables FOLDER --out FOLDER
PYTHONPATH=src:bench python bench/evidence_second.py --out FOLDER --collect bench/results   # once, after the runs

Made for one thread of a CPU: two trials at a time, two learning rates of every rank first, then one further rate
wherever the best is at an edge, until every rank has its best between two others. Can be cut at any time: the same
command goes on (delete `claims` in the folder before). Knows `bench/evidence_grid.py`, whose files it writes and which
also unpacks the model. What `bench/evidence_report.py` tells of it is `tell_second`.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain, islice
from math import exp, inf, isfinite, log
from pathlib import Path

import numpy as np
import torch

from evidence_analysis import Curve, Grid, slope
from evidence_grid import COLUMNS, CellKey, Measuring, Plan, Store, Unit
from evidence_store import Evidence, run_of
from evidence_tables import FACTS, load
from loratune.data.batches import subset
from loratune.engine.pack import PackEngine
from loratune.maths.laws import ALPHA_EXPONENT, FAMILY_RATE, RANK_EXPONENT
from loratune.maths.learned import law_rate, learn_rate, measured_tasks
from loratune.model.base import load_model
from loratune.values import StudiedTask, Trial

MODEL, FAMILY, HIDDEN_SIZE, PARAMETERS_PER_RANK = "Gemma-3-270M", "gemma3_text", 640, 237312
FILE = "evidence_second_family.csv"
MODEL_COLUMNS = ("model", "family", "hidden_size", "parameters_per_rank", "base_nll")

TASK, ROWS, EPOCHS, VALIDATION = "banking77", 200, 2.0, 100
WINDOWS = {2: (5, 7), 128: (3, 5), 32: (4, 6), 8: (4, 6)}
"""Of the grid's rates: those around the law's."""
LAST = 8
"""The rank that tells least of the slope."""
AT_ONCE, ROUNDS, FEWEST_RATES = 2, 6, 3


class SecondPlan(Plan):
    """Few trials, those at edges in small units: the losses of single rows are kept when a unit ends."""

    def units(self) -> Iterator[Unit]:
        """Ranks far apart at two rates, their edges, then the rank between."""
        for rank, window in WINDOWS.items():
            if rank == LAST:
                yield from self.rounds("edges")
            trials = self.trials(TASK, {rank: window}, size=ROWS, seeds=(0,))
            yield Unit(name=f"rank{rank}-{TASK}", task=TASK, trials=tuple(trials))
        yield from self.rounds("last")

    def rounds(self, name: str) -> Iterator[Unit]:
        """Edges as long as there are any."""
        for number in range(ROUNDS):
            yield Unit(name=f"{name}{number}-{TASK}", task=TASK, trials=(), edges=True)

    def edges(self, task: str, ended: Mapping[CellKey, float]) -> Iterator[Trial]:
        """No more than train at once; then rates half-way to what diverged, so that a parabola can be laid."""
        yield from islice(chain(super().edges(task, ended), self.between(ended)), AT_ONCE)

    def between(self, ended: Mapping[CellKey, float]) -> Iterator[Trial]:
        """Where the best rate's higher neighbour on the grid diverged: the geometric mean of both."""
        for rank in WINDOWS:
            curve = {key[3]: nll for key, nll in ended.items() if key[1] == rank}
            finite = [rate for rate in curve if isfinite(curve[rate])]
            if len(finite) < FEWEST_RATES:
                best = min(finite, key=lambda rate: curve[rate], default=inf)
                above = min((rate for rate in curve if rate > best), default=inf)
                if isfinite(above) and not isfinite(curve[above]):
                    middle = float(f"{(best * above) ** 0.5:.2g}")
                    yield self.trial(TASK, ROWS, rank, 2.0 * rank, middle, None, 0)


def measure(model: str, tables: Path, out: Path) -> None:
    """Train what is not done, one thread."""
    torch.set_num_threads(1)
    task = load(tables, TASK)
    some = subset(len(task.validation), VALIDATION / len(task.validation), 0)
    facts = replace(task.facts, epochs=EPOCHS)
    task = replace(task, facts=facts, validation=task.validation.take(some))
    engine = PackEngine(
        base=load_model(model, dtype="float32", device="cpu"),
        train=task.train,
        validation=task.validation,
        study_seed=0,
        cost=lambda trial: 1.0,
        validation_subset_size=VALIDATION,
        evaluations_per_trial=1,
        max_tokens_per_micro_batch=2048,
    )
    plan = SecondPlan({TASK: task}, (ROWS, len(task.train)))
    measuring = Measuring(plan, Store(folder=out, process=0), engine, seconds=inf, slots=AT_ONCE)
    for unit in plan.units():
        measuring.measure(unit)


def collect(out: Path, results: Path) -> None:
    """The runs that ended, by rank and learning rate, with what the model is."""
    with (out / "units-0.csv").open(newline="", encoding="utf-8") as file:
        base = next(csv.DictReader(file))["base_nll"]
    model = dict(zip(MODEL_COLUMNS, (MODEL, FAMILY, HIDDEN_SIZE, PARAMETERS_PER_RANK, base), strict=True))
    rows = [row for row in Store(folder=out, process=0).rows if row["state"] != "running"]
    rows.sort(key=lambda row: (int(row["rank"]), float(row["learning_rate"])))
    with (results / FILE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, (*COLUMNS, *MODEL_COLUMNS), lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **model} for row in rows)


TASK_AS_STUDIED = StudiedTask(
    dataset=TASK,
    model=MODEL,
    family=FAMILY,
    kind=FACTS[TASK].kind,
    hidden_size=HIDDEN_SIZE,
    parameters_per_rank=PARAMETERS_PER_RANK,
    rows=float(ROWS),
    epochs=EPOCHS,
)
"""What the law for the learning rate has to know."""


def residual(curve: Curve) -> float:
    """ln(measured best rate / the law's)."""
    at = curve.place
    law = law_rate(TASK_AS_STUDIED, r=at.rank, lora_alpha=at.lora_alpha, batch_size=at.batch_size)
    return log(curve.best[0] / law)


def tell_second(results: Path, first: Evidence) -> str:
    """A line per rank, then what follows for the law; the spread of seeds is that of the first model's runs."""
    with (results / FILE).open(newline="", encoding="utf-8") as file:
        grid = Grid(map(run_of, csv.DictReader(file)))
    ((dataset, rows),) = grid.tasks
    curves = grid.by_rank(dataset, rows)
    exact = {(run.rank, run.learning_rate): run.exact_match for run in grid.runs}
    lines = [
        "| rank | learning rate: NLL | best learning rate | law | measured / law | exact match |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for curve in curves:
        best, _, inside = curve.best
        cells = (
            curve.place.rank,
            ", ".join(f"{rate:g}: {_told(nll)}" for rate, nll in zip(curve.rates, curve.means, strict=True)),
            f"{best:.2g}" + ("" if inside else " (edge)"),
            f"{best / exp(residual(curve)):.2g}",
            f"{exp(residual(curve)):.2f}",
            f"{exact[curve.place.rank, curve.tried]:.2f}",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join([*lines, "", *_conclusions(curves, first)])


def _told(nll: float) -> str:
    return f"{nll:.3f}" if isfinite(nll) else "diverged"


def _conclusions(curves: list[Curve], first: Evidence) -> Iterator[str]:
    sd = first.grid.relative_noise(TASK, min(size for name, size in first.grid.tasks if name == TASK))
    used = [curve for curve in curves if curve.best[2]]
    fitted = slope(curves, lambda curve: curve.place.rank, sd)
    law = RANK_EXPONENT + ALPHA_EXPONENT
    yield (
        f"- Exponent of the best learning rate in rank, {len(used)} ranks inside: "
        f"{fitted[0].told() if fitted else 'not to be had'}; the law has {law:.2f}. The interval takes the spread of "
        f"seeds from SmolLM2's runs ({100 * sd:.1f} % of the NLL)."
    )
    mean = float(np.mean([residual(curve) for curve in used or curves]))
    known = measured_tasks()
    without = learn_rate(TASK_AS_STUDIED, [task for task in known if task.dataset != TASK]).factor
    yield (
        f"- Measured over predicted, mean of these ranks: law {exp(mean):.2f}, corrected by the package's tables "
        f"without {TASK} {exp(mean) / without:.2f}, with SmolLM2's {TASK} "
        f"{exp(mean) / learn_rate(TASK_AS_STUDIED, known).factor:.2f}. The law's factor for the family is "
        f"{FAMILY_RATE[FAMILY]}; {FAMILY_RATE[FAMILY] * exp(mean):.1f} would have been right here."
    )
    order = sorted(curves, key=lambda curve: curve.best[1])
    lowest, next_one = order[0], order[1]
    yield (
        f"- Lowest NLL: rank {lowest.place.rank} ({lowest.best[1]:.3f}), then rank {next_one.place.rank} "
        f"({next_one.best[1]:.3f}); two single runs differ by {100 * 2 * 2**0.5 * sd:.0f} % by seeds alone (2 sd)."
    )


def main() -> None:
    """Measure or collect."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", help="a folder with unpacked weights")
    parser.add_argument("--tables", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--collect", type=Path, metavar="RESULTS")
    given = parser.parse_args()
    if given.collect:
        collect(given.out, given.collect)
    else:
        measure(given.model, given.tables, given.out)


if __name__ == "__main__":
    main()
