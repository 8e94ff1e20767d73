"""Measured tasks shipped with the package: facts in `tables/tasks.csv`, optima in `tables/optima.csv`.

To add a task, append its lines to both (`bench/measured_tables.py` reads the optima off a table of runs); every prior
and its interval follow by code. Knows the two files only.
"""

import csv
from collections import defaultdict
from functools import cache
from importlib.resources import files

from loratune.values import Optimum, StudiedTask

OPTIMUM_COLUMNS = ("dataset", "model", "rank", "lora_alpha", "batch_size", "learning_rate", "nll", "inside")


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
