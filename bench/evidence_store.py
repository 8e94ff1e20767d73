"""The evidence as files: what the processes of `bench/evidence_grid.py` wrote, joined, and read again.

Knows the files of `bench/results/evidence_*` and the form of the package's tables of measured tasks.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np

from evidence_analysis import Examples, Floats, Grid, RankTest, Run, rank_tests
from evidence_grid import COLUMNS, SIZES
from evidence_tables import FACTS, load
from loratune.data.batches import subset
from loratune.maths.learned import measured_tasks
from loratune.values import NLL_MARGIN, Optimum, StudiedTask

MODEL, FAMILY, HIDDEN_SIZE, PARAMETERS_PER_RANK = "SmolLM2-135M-Instruct", "llama", 576, 305280
GRID, EXAMPLES, FACTS_FILE = "evidence_grid.csv", "evidence_grid_per_example_nll.npz", "evidence_facts.json"
SOURCE = "measured with our engine (docs/evidence.md)"


def collect(runs: Path, tables: Path, results: Path) -> None:
    """Join what the processes wrote: one table, one file of losses per row, one of facts."""
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for path in sorted(runs.glob("grid-*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row.get("state"):
                    rows[tuple(row[name] for name in COLUMNS[:8])] = row  # a trial begun anew reads anew
    ended = {tuple(row[name] for name in COLUMNS[:6]) for row in rows.values() if row["state"] != "running"}
    kept = [row for key, row in rows.items() if key[:6] in ended]
    kept.sort(key=lambda r: (r["task"], float(r["lora_alpha"]) / int(r["rank"]), *map(float, _numbers(r))))
    results.mkdir(parents=True, exist_ok=True)
    with (results / GRID).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
    losses, base = _losses(runs)
    if (results / EXAMPLES).exists():  # of earlier runs, whose rows are among those joined
        with np.load(results / EXAMPLES, allow_pickle=False) as earlier:
            losses = {**earlier, **losses}
    np.savez_compressed(results / EXAMPLES, **losses)
    facts = {name: _facts(tables, name, base) for name in FACTS if any(r["dataset"] == name for r in kept)}
    if (results / FACTS_FILE).exists():  # a task that was not run again has its base from before
        for name, told in json.loads((results / FACTS_FILE).read_text(encoding="utf-8")).items():
            if name not in base and name in facts:
                facts[name]["base_nll"] = told["base_nll"]
    (results / FACTS_FILE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(f"{len(ended)} trials, {len(losses)} with losses of single rows")


def _numbers(row: Mapping[str, str]) -> Iterator[str]:
    return (row[name] for name in ("rank", "batch_size", "learning_rate", "seed", "fraction"))


def _losses(runs: Path) -> tuple[dict[str, Any], dict[str, Floats]]:
    """By the names that replays of tables use (alpha = 2r only), halves for their size; the base model's by task."""
    losses: dict[str, Any] = {}
    base: dict[str, Floats] = {}
    for path in sorted(runs.glob("nll-*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            for key in arrays.files:
                if key == "base":
                    dataset = next(name for name in FACTS if f"-{name}-" in path.name)
                    base[dataset] = arrays[key].astype(np.float64)
                    continue
                task, rank, alpha, rate, batch, seed = key.split(",")
                if float(alpha) == 2 * int(rank):
                    name = f"task={task},rank={rank},learning_rate={float(rate):g},batch_size={batch},seed={seed}"
                    losses[name] = arrays[key].astype(np.float16)
    return losses, base


def _facts(tables: Path, name: str, base: Mapping[str, Floats]) -> dict[str, Any]:
    task = load(tables, name)
    weights = task.validation.supervised_counts
    largest = max(SIZES)
    train = task.train.take(range(min(largest, len(task.train))))
    tokens = {
        str(size): int(train.take(subset(len(train), size / largest, 0)).supervised_counts.sum())
        for size in SIZES
    }
    return {
        **asdict(task.facts),
        "mean_length": round(float(train.lengths.mean()), 1),
        "supervised_tokens": tokens,
        "base_nll": round(float(base[name].sum() / weights.sum()), 4) if name in base else None,
        "validation_supervised": weights.tolist(),
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """Everything that was measured."""

    grid: Grid
    examples: Examples
    facts: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, results: Path) -> Evidence:
        """What `collect` wrote."""
        with (results / GRID).open(newline="", encoding="utf-8") as file:
            runs = [run_of(row) for row in csv.DictReader(file) if row["state"] != "running"]
        examples = {}
        with np.load(results / EXAMPLES, allow_pickle=False) as arrays:
            for key in arrays.files:
                found = dict(part.split("=", 1) for part in key.split(","))
                dataset, _, rows = found["task"].rpartition("-")
                place = (int(found["rank"]), float(found["learning_rate"]))
                after = (int(found["batch_size"]), int(found["seed"]))
                examples[dataset, int(rows), *place, *after] = arrays[key].astype(np.float64)
        facts = json.loads((results / FACTS_FILE).read_text(encoding="utf-8"))
        return cls(grid=Grid(runs), examples=examples, facts=facts)

    def tests(self, dataset: str, rows: int) -> list[RankTest]:
        weights = np.array(self.facts[dataset]["validation_supervised"], np.float64)
        return rank_tests(self.grid, dataset, rows, self.examples, weights)

    def readable(self, dataset: str, rows: int) -> bool:
        """Whether two seeds' mean is known to a margin, so that a needed rank can be read off the curve.

        The noise is the task's own, where nothing was repeated that of its other size.
        """
        found = [self.grid.seed_noise(dataset, size) for size in (rows, *SIZES)]
        known = next(noise for noise in found if noise.known)
        return bool((known.variance / 2) ** 0.5 <= NLL_MARGIN)

    def studied(self, dataset: str, rows: int) -> StudiedTask:
        """The task as the prior's tables hold it: losses of ranks only where a needed rank can be read off them."""
        facts = self.facts[dataset]
        readable = self.readable(dataset, rows)
        curves = [c for p, c in self.grid.curves.items() if (p.dataset, p.rows) == (dataset, rows)]
        optima = [
            Optimum(
                r=curve.place.rank,
                lora_alpha=curve.place.lora_alpha,
                batch_size=curve.place.batch_size,
                learning_rate=float(f"{curve.best[0]:.3g}"),
                nll=float(f"{curve.best[1]:.4f}") if readable else inf,
                inside=curve.best[2],
            )
            for curve in curves
        ]
        return StudiedTask(
            dataset=dataset,
            model=f"{MODEL}, {rows} rows",
            family=FAMILY,
            kind=facts["kind"],
            hidden_size=HIDDEN_SIZE,
            parameters_per_rank=PARAMETERS_PER_RANK,
            rows=float(rows),
            epochs=float(facts["epochs"]),
            supervised_tokens=int(facts["supervised_tokens"][str(rows)]),
            labels=int(facts["labels"]),
            source=SOURCE,
            optima=tuple(sorted(optima, key=lambda o: (o.batch_size, o.r, o.lora_alpha))),
        )


def run_of(row: Mapping[str, str]) -> Run:
    """A line of the table."""
    return Run(
        dataset=row["dataset"],
        rows=int(row["rows"]),
        rank=int(row["rank"]),
        lora_alpha=float(row["lora_alpha"]),
        learning_rate=float(row["learning_rate"]),
        batch_size=int(row["batch_size"]),
        seed=int(row["seed"]),
        epochs=float(row["epochs"]),
        nll=float(row["val_nll"]) if row["val_nll"] else inf,
        exact_match=float(row["val_exact_match"]) if row["val_exact_match"] else nan,
    )


def tables_without(own: Sequence[StudiedTask]) -> list[StudiedTask]:
    """The package's tasks but for those that are ours."""
    ours = {(task.dataset, task.model) for task in own}
    return [task for task in measured_tasks() if (task.dataset, task.model) not in ours]
