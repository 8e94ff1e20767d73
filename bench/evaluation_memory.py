"""Predicted against measured memory of evaluations, with random weights: rows as they are, and labels by trees.

For each shape trials are trained for a few steps first, as in a search, so that recorded graphs hold what they hold.
Then the same adapters are evaluated with micro-batches of growing size. Of each the bytes of tensors beyond those
held before (the resident set on a CPU), beside what `costs.activations` predicts; and the most that the process has
held, beside steps and evaluation as a plan adds them up. Prints as it goes and appends rows to
bench/results/evaluation_memory.csv. Imports neither optuna nor datasets.

PYTHONPATH=src:bench python bench/evaluation_memory.py; --compare measures nothing and tells what is predicted today
for the rows that GPUs have measured; on a CPU add --shapes smollm2-135m --tokens 1024,2048
"""

import argparse
import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loratune.costs.execution import ON_CUDA
from loratune.costs.limits import MICRO_BATCH_TOKENS, Limits, limits_here, measured_peak, supervised_share
from loratune.costs.planner import LivePack, Planner
from loratune.costs.step_time import StepTime
from loratune.data.table import TokenTable
from loratune.engine.pack import PackEngine
from loratune.model.base import BaseModel
from loratune.model.device import forget_peak, held_memory, peak_of_step
from loratune.values import HyperParameters, Trial
from record import append, circumstances
from rows import drawn_rows
from shapes import SHAPES, random_base

RESULTS = Path(__file__).parent / "results" / "evaluation_memory.csv"
LABELS, STEPS = 8, 6


def labelled(table: TokenTable, vocabulary: int) -> tuple[TokenTable, tuple[np.ndarray, ...]]:
    """The rows' prompts, each with one of a few labels of two tokens behind it."""
    labels = tuple(np.array([10 + i, vocabulary // 2 + i], np.int32) for i in range(LABELS))
    rows = []
    for i in range(len(table)):
        tokens, supervised = table.row(i)
        prompt = [*tokens[: max(1, int(np.argmax(supervised)))].tolist()]
        rows.append((prompt + labels[i % LABELS].tolist(), [False] * len(prompt) + [True, True]))
    return TokenTable.from_rows(rows, labels=[i % LABELS for i in range(len(table))]), labels


class Bench:
    """A base model, its rows and some adapters."""

    def __init__(self, base: BaseModel, options: argparse.Namespace) -> None:
        self.base, self.options = base, options
        rows = drawn_rows("banking77", base.profile.vocabulary, options.rows, seed=0)
        self.table, self.labels = labelled(rows, base.profile.vocabulary)
        self.recipe = HyperParameters(r=16, lora_alpha=16, learning_rate=1e-6, batch_size=8, epochs=1.0)
        self.engine = PackEngine(
            base=base,
            train=self.table,
            validation=self.table,
            study_seed=0,
            cost=lambda trial: 1.0,
            label_tokens=self.labels,
        )

    def measure(self, tokens: int, what: str) -> dict[str, Any]:
        """Training, then an evaluation with micro-batches of so many tokens."""
        engine = self.engine.with_micro_batches(self.engine.micro_batch_tokens, in_evaluation=tokens)
        device = self.base.device
        forget_peak(device)
        trials = [Trial(hyper_parameters=self.recipe, seed=seed) for seed in range(self.options.trials)]
        slots = engine.slots(trials)
        evaluate = engine.predict if what == "labels" else engine.read
        with engine.attached() as step:
            for _ in range(STEPS):
                step(slots)
            adapters = [slot.adapter for slot in slots]
            evaluate(adapters, self.table)  # compiles
            whole = measured_peak(device, self._limits(engine).execution)
            forget_peak(device)
            held = torch.cuda.memory_allocated(device) if device.type == "cuda" else held_memory(device)
            evaluate(adapters, self.table)
        limits = self._limits(engine)
        in_flight = min(tokens, len(trials) * int(self.table.lengths.sum()))
        predicted, total = predictions(limits, self.table, [self.recipe] * len(trials), in_flight)
        return {
            "tokens": in_flight,
            "measured": peak_of_step(device) - held,
            "predicted": predicted,
            "measured_total": whole,
            "predicted_total": total,
        }

    def _limits(self, engine: PackEngine) -> Limits:
        return limits_here(self.base, engine.chosen_paths, self.table, self.table)


def predictions(
    limits: Limits, table: TokenTable, pack: Sequence[HyperParameters], tokens: int
) -> tuple[int, int]:
    """Bytes of an evaluation of so many tokens, and of the process that trains a pack and evaluates."""
    rows, lengths = len(table), table.lengths
    planner = Planner(
        limits=limits,
        times=StepTime(points=((1.0, 1.0),), micro_batch_tokens=limits.micro_batch_tokens),
        rows=rows,
        tokens=int(lengths.sum()),
        slots=len(pack),
        evaluated_tokens=tokens,
        spread=float(lengths.std() / lengths.mean()),
    )
    trained = sum(trial.batch_size for trial in pack) * float(lengths.mean())
    total = planner.peak_bytes([LivePack(tuple(pack), trained)])
    if limits.execution.device == "cuda":  # what is measured are tensors
        limits = replace(limits, execution=replace(limits.execution, allocator=0.0))
    return limits.evaluating(tokens), total


def compare(results: Path, options: argparse.Namespace) -> None:
    """What is predicted today for the evaluations that GPUs have measured."""
    for row in csv.DictReader(results.read_text().splitlines()):
        if row["device"].startswith("cpu"):
            continue
        bench = Bench(random_base(row["shape"], getattr(torch, row["dtype"]), "meta"), options)
        limits = Limits(
            model=bench.base.profile,
            max_length=int(bench.table.lengths.max()),
            micro_batch_tokens=MICRO_BATCH_TOKENS["cuda"],
            device_bytes=2**40,
            execution=ON_CUDA,
            supervised=supervised_share(bench.table),
        )
        pack = [bench.recipe] * int(row["trials"])
        predicted, total = predictions(limits, bench.table, pack, int(row["tokens"]))
        found = f"{predicted / int(row['measured']) - 1:+.1%}, process {total / int(row['measured_total']) - 1:+.1%}"
        print(row["shape"], row["what"], f"{row['tokens']} tokens: {found}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shapes", default="smollm2-135m,qwen2-0.5b,llama3-1b,llama3-8b")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tokens", default="8192,32768,131072", help="of an evaluation's micro-batch")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument(
        "--compare", action="store_true", help="today's predictions with GPU rows of the results"
    )
    options = parser.parse_args(arguments)
    if options.compare:
        compare(options.results, options)
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for shape in options.shapes.split(","):
        assert shape in SHAPES, f"shapes are {', '.join(SHAPES)}"
        bench = Bench(random_base(shape, getattr(torch, options.dtype), device), options)
        for tokens in map(int, options.tokens.split(",")):
            for what in ("rows", "labels"):
                found = bench.measure(tokens, what)
                gib = {name: f"{found[name] / 2**30:.2f}" for name in found if name != "tokens"}
                print(shape, what, f"{found['tokens']} tokens", gib, flush=True)
                setting = {"shape": shape, "dtype": options.dtype, "trials": options.trials, "what": what}
                append(options.results, circumstances() | setting | found)


if __name__ == "__main__":
    main()
