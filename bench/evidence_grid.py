"""Measures rank x learning rate x dataset size on real tasks with our engine, for `docs/evidence.md`.

PYTHONPATH=src:bench python bench/evidence_grid.py --model FOLDER --tables FOLDER --out FOLDER [--process 0] [--dry-run]

The trials of a unit (one task, one question) train in one pack. Every reading is appended to `grid-PROCESS.csv` at
once, so a run that is cut keeps what it has and the same command goes on with the rest. Processes with one folder,
one device each, take turns: each takes the next unit that nobody has (delete `claims` in the folder before a
rerun). Knows the tables of `bench/evidence_tables.py`; neither texts nor tokenizers, and needs neither optuna nor
datasets.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, inf, isfinite
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from evidence_tables import FACTS, Task, load
from loratune.data.batches import total_steps
from loratune.engine.loop import PackProgress
from loratune.engine.pack import PackEngine
from loratune.lora.layout import Adapter
from loratune.model.base import load_model
from loratune.values import CurvePoint, HyperParameters, Trial, TrialResult, TrialState

RATES = (3.2e-5, 8e-5, 2e-4, 5e-4, 1.25e-3, 3.1e-3, 7.8e-3, 2e-2, 5e-2)
"""One grid for all ranks, 2.5 apart."""
WINDOWS = {2: (4, 8), 8: (3, 7), 32: (2, 6), 128: (1, 5)}
"""Of `RATES` by rank at alpha = 2r; the law's slope r^-0.62, checked on banking77. `edges` widens them."""
SMALL_WINDOWS = {2: (3, 8), 8: (3, 8), 32: (2, 7), 128: (1, 6)}
SIZES = (500, 2000)
CONSTANT_ALPHA, CONSTANT_RANKS, CONSTANT_WINDOW = 32.0, (2, 128), (2, 7)
BATCH_RANK, BATCH_WINDOWS = 8, {4: (2, 6), 64: (4, 8)}
ROUNDS_OF_EDGES = 2
COLUMNS = (
    *("task", "rank", "lora_alpha", "learning_rate", "batch_size", "seed", "epochs", "fraction"),
    *("val_nll", "val_exact_match", "dataset", "rows", "train_nll", "tokens", "seconds", "state"),
)
FULL = 0.999

CellKey = tuple[str, int, float, float, int, int]
"""Task with its size, rank, alpha, learning rate, batch size, seed."""
Row = dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """Trials of one task that train in one pack."""

    name: str
    task: str
    trials: tuple[Trial, ...]
    edges: bool = False
    """Whether its trials are only known when its turn comes."""


@dataclass(kw_only=True)
class Store:
    """The results of all processes in a folder; writes those of one."""

    folder: Path
    process: int
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.folder / "claims").mkdir(parents=True, exist_ok=True)
        self.read()

    def claim(self, unit: str) -> bool:
        """Whether nobody else has taken it."""
        try:
            (self.folder / "claims" / unit).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def read(self) -> None:
        """What all processes have written so far."""
        self.rows = []
        for path in sorted(self.folder.glob("grid-*.csv")):
            with path.open(newline="", encoding="utf-8") as file:
                # a cut may have left half a line
                self.rows += [row for row in csv.DictReader(file) if row.get("state")]

    def append(self, name: str, columns: Sequence[str], row: Mapping[str, object]) -> None:
        """One line to this process's file of that name, at once."""
        path = self.folder / f"{name}-{self.process}.csv"
        new = not path.exists()
        cut = not new and not path.read_bytes().endswith(b"\n")
        with path.open("a", newline="", encoding="utf-8") as file:
            file.write("\n" * cut)
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)

    def speed(self, task: str) -> float:
        """Tokens per second of the task's last unit, else of the mean unit; 0 where none is done."""
        done = []
        for path in sorted(self.folder.glob("units-*.csv")):
            with path.open(newline="", encoding="utf-8") as file:
                done += [
                    (row["unit"], float(row["rate"])) for row in csv.DictReader(file) if row.get("device")
                ]
        own = [rate for unit, rate in done if unit.endswith(f"-{task}")]
        return own[-1] if own else float(np.mean([rate for _, rate in done])) if done else 0.0

    @property
    def ended(self) -> dict[CellKey, float]:
        """Final NLL of every trial that has ended; infinite where it diverged."""
        return {
            cell_of(row): float(row["val_nll"]) if row["val_nll"] else inf
            for row in self.rows
            if row["state"] != "running"
        }


def cell_of(row: Mapping[str, str]) -> CellKey:
    """Which trial a line belongs to."""
    return (
        row["task"],
        int(row["rank"]),
        float(row["lora_alpha"]),
        float(row["learning_rate"]),
        int(row["batch_size"]),
        int(row["seed"]),
    )


class Plan:
    """The units in the order of their worth, for given tasks and sizes."""

    def __init__(self, tasks: Mapping[str, Task], sizes: tuple[int, int]) -> None:
        self.tasks = tasks
        self.sizes = sizes

    def trials(
        self,
        task: str,
        windows: Mapping[int, tuple[int, int]],
        *,
        size: int,
        seeds: Sequence[int],
        alpha: float | None = None,
        batch: int | None = None,
    ) -> Iterator[Trial]:
        """Every rank at the rates of its window, with every seed."""
        for seed in seeds:
            for rank, (low, high) in windows.items():
                for rate in RATES[low:high]:
                    yield self.trial(task, size, rank, alpha or 2.0 * rank, rate, batch, seed)

    def trial(
        self, task: str, size: int, rank: int, alpha: float, rate: float, batch: int | None, seed: int
    ) -> Trial:
        """Trained on the first `size` rows of the study's shuffle."""
        facts = self.tasks[task].facts
        recipe = HyperParameters(
            r=rank,
            lora_alpha=alpha,
            learning_rate=rate,
            batch_size=batch or facts.batch_size,
            epochs=facts.epochs,
        )
        return Trial(hyper_parameters=recipe, seed=seed, fraction=size / max(self.sizes))

    def units(self) -> Iterator[Unit]:
        """Small runs first, then a whole grid of large ones, then repeats, then the side questions."""
        small, large = self.sizes

        def unit(name: str, task: str, *trials: Iterator[Trial]) -> Unit:
            return Unit(name=f"{name}-{task}", task=task, trials=tuple(t for each in trials for t in each))

        for task in self.tasks:
            yield unit("small", task, self.trials(task, SMALL_WINDOWS, size=small, seeds=(0, 1)))
        short = [task for task in self.tasks if task == "banking77"]
        for task in self.tasks:
            seeds = (0, 1) if task in short else (0,)
            yield unit("large", task, self.trials(task, WINDOWS, size=large, seeds=seeds))
        for task in self.tasks:
            if task not in short:
                yield unit("repeat", task, self.trials(task, WINDOWS, size=large, seeds=(1,)))
        for task in short:
            yield unit("side", task, self.constant_alpha(task), self.batches(task))
        for number in range(ROUNDS_OF_EDGES):
            for task in self.tasks:
                yield Unit(name=f"edges{number}-{task}", task=task, trials=(), edges=True)
        for task in self.tasks:
            if task == "gsm8k":
                yield unit("alpha", task, self.constant_alpha(task))
        for task in self.tasks:
            yield unit(
                "third",
                task,
                self.trials(task, WINDOWS, size=large, seeds=(2,)),
                self.trials(task, SMALL_WINDOWS, size=small, seeds=(2,)),
            )

    def constant_alpha(self, task: str) -> Iterator[Trial]:
        """Two ranks far apart at one alpha."""
        windows = dict.fromkeys(CONSTANT_RANKS, CONSTANT_WINDOW)
        return self.trials(task, windows, size=max(self.sizes), seeds=(0, 1), alpha=CONSTANT_ALPHA)

    def batches(self, task: str) -> Iterator[Trial]:
        """Batch sizes beside the grid's own, at one rank."""
        for batch, window in BATCH_WINDOWS.items():
            windows = {BATCH_RANK: window}
            yield from self.trials(task, windows, size=max(self.sizes), seeds=(0, 1), batch=batch)

    def edges(self, task: str, ended: Mapping[CellKey, float]) -> Iterator[Trial]:
        """Where the best rate of a curve is the lowest or highest tried: the grid's next one."""
        curves: dict[tuple[int, int, float, int], dict[float, dict[int, float]]] = defaultdict(
            lambda: defaultdict(dict)
        )
        for (name, rank, alpha, rate, batch, seed), nll in ended.items():
            for size in self.sizes:
                if name == name_of(task, size):
                    curves[size, rank, alpha, batch][rate][seed] = nll
        for (size, rank, alpha, batch), by_rate in curves.items():
            means = {rate: float(np.mean(list(by_rate[rate].values()))) for rate in sorted(by_rate)}
            best = min(means, key=lambda rate: means[rate])
            place = min(range(len(RATES)), key=lambda i: abs(np.log(RATES[i] / best)))
            wanted = []
            if isfinite(means[best]) and best == min(means):
                wanted.append(place - 1)
            if isfinite(means[best]) and best == max(means):
                wanted.append(place + 1)
            for index in wanted:
                if 0 <= index < len(RATES):
                    for seed in sorted(by_rate[best]):
                        yield self.trial(task, size, rank, alpha, RATES[index], batch, seed)

    def rows(self, trial: Trial) -> int:
        """Training rows of a trial."""
        return round(trial.fraction * max(self.sizes))

    def steps(self, trial: Trial) -> int:
        """Optimiser steps of a trial."""
        recipe = trial.hyper_parameters
        return total_steps(self.rows(trial), recipe.batch_size, recipe.epochs)

    def tokens(self, unit: Unit) -> float:
        """Tokens of its training, half of those of its readings included."""
        task = self.tasks[unit.task]
        length = float(task.train.lengths.mean())
        readings = float(task.validation.lengths.sum()) + 3 * SUBSET * float(task.validation.lengths.mean())
        return sum(self.rows(t) * t.hyper_parameters.epochs * length + readings / 2 for t in unit.trials)

    def cell(self, task: str, trial: Trial) -> CellKey:
        """As in the store."""
        recipe = trial.hyper_parameters
        return (
            name_of(task, self.rows(trial)),
            recipe.r,
            recipe.lora_alpha,
            recipe.learning_rate,
            recipe.batch_size,
            trial.seed,
        )


SUBSET = 128
READINGS = 4


def name_of(task: str, size: int) -> str:
    """A task at a size, as the tables name it."""
    return f"{task}-{size}"


class Measuring:
    """Trains units on one device and writes what comes of them."""

    def __init__(self, plan: Plan, store: Store, engine: PackEngine, *, seconds: float, slots: int) -> None:
        self.plan = plan
        self.store = store
        self.engine = engine
        self.slots = slots
        self.deadline = perf_counter() + seconds

    def measure(self, unit: Unit) -> None:
        """Train what of it is not done, where the time allows."""
        self.store.read()
        ended = self.store.ended
        trials = list(self.plan.edges(unit.task, ended)) if unit.edges else list(unit.trials)
        waiting = [t for t in trials if self.plan.cell(unit.task, t) not in ended]
        waiting.sort(key=self.plan.steps, reverse=True)
        if not waiting:
            return
        cost = self.plan.tokens(replace(unit, trials=tuple(waiting)))
        left = self.deadline - perf_counter()
        speed = self.store.speed(unit.task)
        if left <= 0 or (speed and cost / speed > left):
            print(f"{unit.name}: left out, {cost / 1e6:.1f}M tokens in {left:.0f} s", flush=True)
            return
        if not self.store.claim(unit.name):
            return
        self._train(unit, waiting, cost)

    def _train(self, unit: Unit, waiting: list[Trial], cost: float) -> None:
        task = self.plan.tasks[unit.task]
        engine = replace(self._emptied(), train=task.train, validation=task.validation)
        steps = [self.plan.steps(trial) for trial in waiting]
        slots = min(self.slots, len(waiting), ceil(sum(steps) / max(steps)) + 1)
        started = perf_counter()
        examples = {"base": engine.evaluate([None], task.validation)[0].example_nll}
        base = float(examples["base"].sum() / task.validation.supervised_counts.sum())
        trials = len(waiting)
        print(
            f"{unit.name}: {trials} trials in {slots} slots, {cost / 1e6:.1f}M tokens, base {base:.4f}",
            flush=True,
        )
        told = [started, 0.0]

        def next_trial() -> Trial | None:
            late = perf_counter() > self.deadline
            return waiting.pop(0) if waiting and not late else None

        def on_result(result: TrialResult, adapter: Adapter) -> None:
            if result.example_nll is not None:
                key = ",".join(map(str, self.plan.cell(unit.task, result.trial)))
                examples[key] = result.example_nll
            self._write_result(unit.task, result)

        def on_reading(trial: Trial, curve: tuple[CurvePoint, ...]) -> bool:
            self._write(unit.task, trial, curve[-1], state="running")
            return False

        def on_progress(progress: PackProgress) -> None:
            told[1] += progress.tokens
            if perf_counter() - told[0] > 10:
                ahead = progress.slots[0]
                rate = told[1] / (perf_counter() - told[0])
                print(
                    f"  {unit.name}: step {ahead.step} of {ahead.total_steps}, {len(progress.slots)} live, "
                    f"{len(waiting)} wait, {rate:.0f} tokens/s",
                    flush=True,
                )
                told[:] = [perf_counter(), 0.0]

        engine.run(
            next_trial, slots=slots, on_result=on_result, on_progress=on_progress, should_stop=on_reading
        )
        seconds = perf_counter() - started
        rate = cost / seconds
        np.savez_compressed(
            self.store.folder / f"nll-{unit.name}-{self.store.process}-{round(started)}.npz",
            **{key: value.astype(np.float32) for key, value in examples.items()},  # type: ignore[arg-type]
        )
        facts = {"unit": unit.name, "trials": trials, "tokens": round(cost), "seconds": round(seconds, 1)}
        facts |= {"rate": round(rate), "slots": slots, "base_nll": round(base, 5), "device": device_name()}
        self.store.append("units", tuple(facts), facts)
        print(f"{unit.name}: done in {seconds:.0f} s, {rate:.0f} tokens/s", flush=True)

    def _emptied(self) -> PackEngine:
        """The engine without graphs of another task's shapes."""
        self.engine = self.engine.with_micro_batches(self.engine.micro_batch_tokens)
        return self.engine

    def _write_result(self, task: str, result: TrialResult) -> None:
        if result.state is TrialState.DIVERGED:
            end = CurvePoint(step=result.steps, fraction=1.0, train_nll=inf, validation_nll=inf)
            self._write(task, result.trial, end, state="diverged", result=result)
        else:
            self._write(task, result.trial, result.curve[-1], state="complete", result=result)

    def _write(
        self, task: str, trial: Trial, point: CurvePoint, *, state: str, result: TrialResult | None = None
    ) -> None:
        recipe = trial.hyper_parameters
        match = result.metrics.get("exact_match") if result is not None else None
        row = {
            "task": name_of(task, self.plan.rows(trial)),
            "rank": recipe.r,
            "lora_alpha": f"{recipe.lora_alpha:g}",
            "learning_rate": f"{recipe.learning_rate:g}",
            "batch_size": recipe.batch_size,
            "seed": trial.seed,
            "epochs": f"{recipe.epochs:g}",
            "fraction": f"{point.fraction:.4f}",
            "val_nll": f"{point.validation_nll:.5f}" if isfinite(point.validation_nll) else "",
            "val_exact_match": "" if match is None else f"{match:.4f}",
            "dataset": task,
            "rows": self.plan.rows(trial),
            "train_nll": f"{point.train_nll:.5f}" if isfinite(point.train_nll) else "",
            "tokens": "" if result is None else result.trained_tokens,
            "seconds": "" if result is None else f"{result.seconds:.2f}",
            "state": state,
        }
        self.store.append("grid", COLUMNS, row)


def device_name() -> str:
    """As in other results."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def print_plan(plan: Plan) -> None:
    """Units in their order, their tokens, and after how many device seconds they are done at three speeds."""
    total = 0.0
    for unit in plan.units():
        tokens = plan.tokens(unit)
        total += tokens
        times = "  ".join(f"{total / speed:5.0f} s at {speed / 1e3:.0f}k" for speed in (6e4, 1.2e5, 2.5e5))
        known = "when its turn comes" if unit.edges else f"{len(unit.trials):3} trials {tokens / 1e6:5.1f}M"
        print(f"{unit.name:20} {known:19}  {times}")


def load_tasks(
    folder: Path, names: Sequence[str], sizes: tuple[int, int], validation: int
) -> dict[str, Task]:
    """The tasks, cut to so many rows."""
    found = {name: load(folder, name) for name in names}
    return {
        name: replace(
            task,
            train=task.train.take(range(min(max(sizes), len(task.train)))),
            validation=task.validation.take(range(min(validation, len(task.validation)))),
        )
        for name, task in found.items()
    }


def first_engine(tasks: Mapping[str, Task], model: str, micro_batch_tokens: int) -> PackEngine:
    """An engine whose machinery serves the rows of all tasks."""
    base = load_model(model, dtype="bfloat16")
    longest = max(
        tasks.values(), key=lambda task: int(max(task.train.lengths.max(), task.validation.lengths.max()))
    )
    return PackEngine(
        base=base,
        train=longest.train,
        validation=longest.validation,
        study_seed=0,
        cost=lambda trial: 1.0,
        validation_subset_size=SUBSET,
        evaluations_per_trial=READINGS,
        max_tokens_per_micro_batch=micro_batch_tokens or (16384 if base.device.type == "cuda" else 2048),
    )


def main() -> None:
    """Measure, plan, or unpack a .gguf file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", help="a folder, or a .gguf file")
    parser.add_argument("--unpack", help="write the model's weights to this folder, and nothing else")
    parser.add_argument("--tables", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tasks", default=",".join(FACTS))
    parser.add_argument("--sizes", type=int, nargs=2, default=SIZES)
    parser.add_argument("--validation", type=int, default=400)
    parser.add_argument("--process", type=int, default=0, help="its number among those of the folder")
    parser.add_argument(
        "--seconds", type=float, default=inf, help="no unit is begun that would not be done by then"
    )
    parser.add_argument("--slots", type=int, default=48)
    parser.add_argument("--micro-batch-tokens", type=int, default=0)
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args()
    if given.unpack:
        load_model(given.model, dtype="bfloat16", device="cpu").model.save_pretrained(given.unpack)
        return
    sizes = (given.sizes[0], given.sizes[1])
    tasks = load_tasks(given.tables, given.tasks.split(","), sizes, given.validation)
    plan = Plan(tasks, sizes)
    if given.dry_run:
        print_plan(plan)
        return
    started = perf_counter()
    engine = first_engine(tasks, given.model, given.micro_batch_tokens)
    print(*engine.chosen_paths.lines(), f"ready after {perf_counter() - started:.0f} s", sep="\n", flush=True)
    store = Store(folder=given.out, process=given.process)
    left = given.seconds - (perf_counter() - started)
    measuring = Measuring(plan, store, engine, seconds=left, slots=given.slots)
    for unit in plan.units():
        measuring.measure(unit)
    print(f"process {given.process}: finished after {perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
