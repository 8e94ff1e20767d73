"""Training speed of a pack against plain PEFT alone and our engine with one trial, in one run on one device.

Same rows, batch, rank, targets, dtype and optimiser on both sides; rows of exactly --length tokens of which
--supervised are supervised; PEFT is a plain loop (full logits, padded batch). Tokens per second of forward, backward
and step, after a warm-up. Prints one line and appends it to bench/results/throughput.csv. Imports neither optuna nor
datasets.
"""

import argparse
import csv
import subprocess
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from loratune.data.table import TokenTable
from loratune.engine.pack import PackEngine
from loratune.engine.reference import train_alone
from loratune.lora.layout import find_targets
from loratune.values import HyperParameters, Trial
from shapes import SHAPES, random_base

RESULTS = Path(__file__).parent / "results" / "throughput.csv"


def table(vocabulary: int, rows: int, length: int, supervised: int) -> TokenTable:
    """Random rows of one length, the last tokens supervised."""
    random = np.random.default_rng(0)
    flags = np.arange(length) >= length - supervised
    tokens = random.integers(0, vocabulary, (rows, length)).tolist()
    return TokenTable.from_rows([(row, flags.tolist()) for row in tokens])


def rate(work: Callable[[], int], seconds: float) -> float:
    """Tokens per second of repeated work, the first two calls left out."""
    work(), work()
    tokens, started = 0, perf_counter()
    while (elapsed := perf_counter() - started) < seconds:
        tokens += work()
    return tokens / elapsed


def peft_rate(engine: PackEngine, trial: Trial, warm: int, steps: int) -> float:
    """Plain PEFT alone; the difference of two runs, so that building the adapter is not timed."""
    targets = find_targets(engine.base.profile.targets, trial.hyper_parameters.target_modules)

    def run(count: int) -> float:
        started = perf_counter()
        train_alone(engine.base.model, trial, targets, engine.train, engine.batches(trial), steps=count)
        if engine.base.device.type == "cuda":
            torch.cuda.synchronize()
        return perf_counter() - started

    run(warm)
    short, long = run(warm), run(warm + steps)
    return steps * trial.hyper_parameters.batch_size * int(engine.train.lengths[0]) / (long - short)


def pack_rate(engine: PackEngine, trials: list[Trial], seconds: float) -> float:
    """A pack, step by step."""
    slots = [engine.slot(trial) for trial in trials]
    with engine.attached() as step:
        return rate(lambda: step(slots), seconds)


def main() -> None:
    """Measure one cell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--supervised", type=int, default=16)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--micro-batch-tokens", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = random_base(arguments.shape, getattr(torch, arguments.dtype), device)
    rows = table(base.profile.vocabulary, 4096, arguments.length, arguments.supervised)
    engine = PackEngine(
        base=base,
        train=rows,
        validation=rows.take(range(8)),
        study_seed=0,
        cost=lambda trial: 1.0,
        max_tokens_per_micro_batch=arguments.micro_batch_tokens or (16384 if device == "cuda" else 2048),
    )
    recipe = HyperParameters(
        r=arguments.rank, lora_alpha=32, learning_rate=2e-4, batch_size=arguments.batch, epochs=100.0
    )
    trials = [Trial(hyper_parameters=recipe, seed=seed) for seed in range(arguments.slots)]
    steps = 20 if device == "cuda" else 4
    row = {
        "date": date.today().isoformat(),
        "commit": _commit(),
        "device": torch.cuda.get_device_name()
        if device == "cuda"
        else f"cpu, {torch.get_num_threads()} threads",
        "torch": version("torch"),
        "transformers": version("transformers"),
        "peft": version("peft"),
        **{name: getattr(arguments, name) for name in ("shape", "dtype", "batch", "slots", "rank", "length")},
        "peft_tokens_per_s": round(peft_rate(engine, trials[0], 2, steps)),
        "one_trial_tokens_per_s": round(pack_rate(engine, trials[:1], arguments.seconds)),
        "pack_tokens_per_s": round(pack_rate(engine, trials, arguments.seconds)),
    }
    row["pack_over_peft"] = round(row["pack_tokens_per_s"] / row["peft_tokens_per_s"], 2)
    print(row, flush=True)
    _append(row)


def _commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


def _append(row: dict[str, object]) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    fresh = not RESULTS.exists()
    with RESULTS.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row))
        if fresh:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
