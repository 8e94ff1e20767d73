"""Reads the optima off tables of measured runs, for the package's `maths/tables/optima.csv`.

python bench/measured_tables.py DATASET TABLE.csv [--model NAME] > rows.csv

Prints one line per model, rank, alpha and batch size of the table; append those of a new dataset to `optima.csv`, and
a line per model with its facts to `tasks.csv`. The columns of TABLE.csv are those of simulated runs
(`docs/how-it-decides.md`); `--model` is for tables of one model, elsewhere the column `task` names it.
"""

import argparse
import csv
import sys
from collections import defaultdict
from collections.abc import Iterator
from math import isfinite
from pathlib import Path

import numpy as np

from loratune.maths.curves import best_rate

OPTIMUM_COLUMNS = ("dataset", "model", "rank", "lora_alpha", "batch_size", "learning_rate", "nll", "inside")
"""Of `optima.csv`."""
WHOLE = 0.999
"""A run of at least this fraction has been trained to its end."""


def optima(dataset: str, table: Path, model: str | None) -> Iterator[tuple[object, ...]]:
    """Rows of `optima.csv`; repeats are pooled, a cell without a finite loss has diverged."""
    losses: dict[tuple[str, int, float, int], dict[float, list[float]]] = defaultdict(
        lambda: defaultdict(list)
    )
    with table.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            if float(row["fraction"]) < WHOLE:
                continue
            place = (
                model or row["task"],
                int(row["rank"]),
                float(row["lora_alpha"]),
                int(row["batch_size"]),
            )
            value = float(row["val_nll"]) if row["val_nll"] else float("inf")
            losses[place][float(row["learning_rate"])].append(value)
    for (name, rank, alpha, batch), by_rate in sorted(losses.items()):
        rates = sorted(by_rate)
        means = [float(np.mean(by_rate[rate])) for rate in rates]
        if any(map(isfinite, means)):
            rate, nll, inside = best_rate(rates, means)
            yield dataset, name, rank, f"{alpha:g}", batch, f"{rate:.3g}", f"{nll:.4f}", int(inside)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("table", type=Path)
    parser.add_argument("--model")
    given = parser.parse_args()
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(OPTIMUM_COLUMNS)
    writer.writerows(optima(given.dataset, given.table, given.model))


if __name__ == "__main__":
    main()
