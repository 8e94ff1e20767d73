"""Predicted against measured peak memory of packs, with random weights, over several architectures.

For each shape two small packs calibrate, as `loratune plan` does; then packs of mixed ranks, batches, lengths and
targets are predicted and trained for three steps, the last two of them sized to what the device has. Measured
are what PyTorch's allocator gave out and what it held (GPU), or the resident set (CPU). Prints as it goes and
appends every row to bench/results/memory.csv; `--draw` draws docs/performance-memory.svg instead. Imports neither
optuna nor datasets.

On a GPU: PYTHONPATH=src:bench python bench/memory.py; on a CPU add --small --shapes smollm2-135m
--packs one,eight,mixed --dtype float32 --micro-batch-tokens 512.
"""

import argparse
import csv
import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from loratune.costs.correction import UNCORRECTED, Correction, fit_correction
from loratune.costs.execution import Device, Execution
from loratune.costs.limits import Limits, device_bytes, execution_of
from loratune.costs.measuring import MeasuredStep, measure_step
from loratune.costs.memory import TIGHT
from loratune.data.table import TokenTable
from loratune.engine.machinery import Paths, choose_paths
from loratune.engine.memory import Shortage
from loratune.engine.pack import PackEngine
from loratune.errors import ResourceError
from loratune.model.base import BaseModel
from loratune.model.device import peak_memory
from loratune.values import ALL_LINEAR, HyperParameters, Trial
from memory_plot import draw
from record import append, circumstances
from rows import rows_of
from shapes import SHAPES, random_base
from tensors import tensor_bytes

RESULTS = Path(__file__).parent / "results" / "memory.csv"
PICTURE = Path(__file__).parents[1] / "docs" / "performance-memory.svg"
MLP = ("gate_proj", "up_proj", "down_proj")
QV = ("q_proj", "v_proj")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pack:
    """One pack: (rank, batch size, targets) of each trial."""

    trials: tuple[tuple[int, int, tuple[str, ...]], ...]
    length: str = "128"
    share: float = 1.0
    """Of the usual micro-batch."""


def equal(count: int, rank: int, batch: int, targets: tuple[str, ...] = ALL_LINEAR) -> tuple[Any, ...]:
    """So many equal trials."""
    return ((rank, batch, targets),) * count


CALIBRATION = {
    "calibrate-small": Pack(trials=equal(8, 16, 16), share=0.25),
    "calibrate-large": Pack(trials=equal(8, 16, 16)),
}
PACKS = {
    "one": Pack(trials=equal(1, 16, 16)),
    "eight": Pack(trials=equal(8, 16, 4)),
    "mixed": Pack(trials=tuple((r, 4, ALL_LINEAR) for r in (1, 2, 4, 8, 16, 32, 64, 128))),
    "batches": Pack(trials=tuple((8, batch, ALL_LINEAR) for batch in (1, 4, 16, 32))),
    "long": Pack(trials=equal(4, 32, 4), length="1024"),
    "short": Pack(trials=equal(16, 4, 8), length="64"),
    "banking77": Pack(trials=equal(16, 16, 16), length="banking77"),
    "gsm8k": Pack(trials=equal(8, 16, 4), length="gsm8k"),
    "attention": Pack(trials=equal(8, 16, 8, QV), length="256"),
    "mlp": Pack(trials=equal(8, 16, 8, MLP), length="256"),
    "unlike": Pack(trials=((128, 2, QV), (4, 16, MLP), (32, 8, ALL_LINEAR), (1, 32, ALL_LINEAR))),
    "many": Pack(trials=equal(24, 8, 16), share=0.5),
}
LIMITS = {"limit": 1.0, "tight": (1 + TIGHT) / 2 / TIGHT}
"""Packs sized to what the device has: to where it just `fits`, and to the middle of `tight`."""
LIMIT_TRIALS = 4


def hyper_parameters(pack: Pack) -> list[HyperParameters]:
    """Of the trials of a pack."""
    return [
        HyperParameters(
            r=r, lora_alpha=2 * r, learning_rate=1e-4, batch_size=batch, epochs=100.0, target_modules=targets
        )
        for r, batch, targets in pack.trials
    ]


def shrunk(pack: Pack) -> Pack:
    """The same with few and short rows."""
    trials = tuple((r, max(1, batch // 8), targets) for r, batch, targets in pack.trials)
    length = str(min(64, int(pack.length))) if pack.length.isdigit() else pack.length
    return replace(pack, trials=trials, length=length)


@dataclass(kw_only=True)
class Bench:
    """A base model on a device, and what is known of its memory so far."""

    base: BaseModel
    paths: Paths
    execution: Execution
    device_bytes: int
    correction: Correction = UNCORRECTED

    def limits(self, table: TokenTable, micro_batch_tokens: int) -> Limits:
        """What fits, on those rows; uncorrected."""
        return Limits(
            model=self.base.profile,
            max_length=int(table.lengths.max()),
            micro_batch_tokens=micro_batch_tokens,
            device_bytes=self.device_bytes,
            execution=self.execution,
            supervised=float(table.supervised_counts.sum() / table.lengths.sum()),
        )

    def run(
        self, pack: Sequence[HyperParameters], table: TokenTable, micro_batch_tokens: int
    ) -> MeasuredStep | None:
        """Three steps, the first a warm-up; None where the engine had to cut them smaller."""
        shortages: list[Shortage] = []
        engine = PackEngine(
            base=self.base,
            train=table,
            validation=table.take(range(4)),
            study_seed=0,
            cost=lambda trial: 1.0,
            max_tokens_per_micro_batch=micro_batch_tokens,
            paths=self.paths,
            on_shortage=shortages.append,
        )
        trials = [Trial(hyper_parameters=hp, seed=seed) for seed, hp in enumerate(pack)]
        step = measure_step(engine, trials, seconds=0.0)
        return None if shortages else step


def limit_pack(bench: Bench, table: TokenTable, share: float) -> tuple[list[HyperParameters], int]:
    """Trials whose step is one micro-batch, the largest of which the corrected model says that it just fits.

    With `share` other than 1 into that share of the device.
    """
    limits = replace(
        bench.limits(table, 0), correction=bench.correction, device_bytes=int(share * bench.device_bytes)
    )
    trial = hyper_parameters(Pack(trials=equal(1, 64, 16)))[0]
    rows = limits.largest_micro_batch([trial] * LIMIT_TRIALS, 2**20) // limits.max_length // LIMIT_TRIALS
    pack = [replace(trial, batch_size=max(1, rows))] * LIMIT_TRIALS
    return pack, max(1, rows) * LIMIT_TRIALS * limits.max_length


def compare(
    bench: Bench, name: str, pack: Sequence[HyperParameters], length: str, tokens: int
) -> dict[str, Any]:
    """Predict, run, and put both into one row."""
    table = rows_of(length, bench.base.profile.vocabulary)
    gc.collect()
    cuda = bench.base.device.type == "cuda"
    limits = bench.limits(table, tokens)
    step: MeasuredStep | None = None
    started = perf_counter()
    try:
        step = bench.run(pack, table, tokens)
    except ResourceError:
        gc.collect()
    in_flight = step.largest if step else tokens
    known = replace(limits, micro_batch_tokens=max(in_flight, limits.max_length))
    plain = known.estimate(pack, step_tokens=in_flight)
    fitted = replace(known, correction=bench.correction).estimate(pack, step_tokens=in_flight)
    allocated = (step.peak_bytes or 0) if step else 0
    held = peak_memory(bench.base.device) if step else 0
    free, total = torch.cuda.mem_get_info() if cuda else (0, 0)
    context = total - free - torch.cuda.memory_reserved() if cuda else 0
    return {
        **circumstances(),
        "shape": bench.base.profile.name.removeprefix("random "),
        "dtype": str(bench.base.dtype).removeprefix("torch."),
        "compiled": bench.paths.compiled,
        "pack": name,
        "trials": len(pack),
        "ranks": " ".join(map(str, sorted({hp.r for hp in pack}))),
        "length": length,
        "micro_batch_tokens": tokens,
        "tokens_in_flight": in_flight,
        **{f"predicted_{part}": amount for part, amount in plain.parts.items()},
        "predicted_allocated": tensor_bytes(plain),
        "measured_allocated": allocated if cuda else 0,
        "predicted_total": plain.total,
        "corrected_total": fitted.total,
        "measured_total": held + context if step else 0,
        "context": context,
        "growing_segments": cuda and _growing_segments(),
        "device_bytes": bench.device_bytes,
        "verdict": replace(limits, correction=bench.correction).estimate(pack).verdict(bench.device_bytes),
        "survived": step is not None,
        "seconds": round(perf_counter() - started, 1),
        "_peak": plain.peak(plain.held(allocated) if cuda else held) if step else None,
    }


def _growing_segments() -> bool:
    """Whether the allocator extends its segments, see `model.device`."""
    return any(each["is_expandable"] for each in torch.cuda.memory_snapshot())  # type: ignore[no-untyped-call]


def line(row: dict[str, Any]) -> str:
    """A row for people: GiB, and errors in per cent."""
    gib = 2**30
    parts = [
        f"{row['shape']:13} {row['pack']:16} {row['trials']:4} trials {row['tokens_in_flight']:6} tokens",
        f"total {row['measured_total'] / gib:6.2f} predicted {row['predicted_total'] / gib:6.2f}",
        f"corrected {row['corrected_total'] / gib:6.2f} ({error(row):+.1%})"
        if row["survived"]
        else "OUT OF MEMORY",
    ]
    if row["measured_allocated"]:
        off = row["predicted_allocated"] / row["measured_allocated"] - 1
        parts.append(f"allocated {row['measured_allocated'] / gib:6.2f} arithmetic {off:+.1%}")
    return "  ".join([*parts, row["verdict"], f"{row['seconds']} s"])


def error(row: dict[str, Any]) -> float:
    """Of the corrected prediction, as a share of what was measured."""
    return float(row["corrected_total"]) / float(row["measured_total"]) - 1


def measure(shape: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All packs of one architecture."""
    device: Device = "cuda" if torch.cuda.is_available() else "cpu"
    base = random_base(shape, getattr(torch, arguments.dtype), device)
    paths = choose_paths(base, longest=0)  # these architectures have no windows
    execution = execution_of(device, paths)
    bench = Bench(
        base=base,
        paths=paths,
        execution=execution,
        device_bytes=device_bytes(arguments.device_memory, base.device, execution),
    )
    usual = arguments.micro_batch_tokens
    rows, peaks = [], []
    for name, pack in CALIBRATION.items():
        pack = shrunk(pack) if arguments.small else pack
        row = compare(bench, name, hyper_parameters(pack), pack.length, int(usual * pack.share))
        peaks.append(row.pop("_peak"))
        print(line(row), flush=True)
        append(RESULTS, row)
    bench.correction = fit_correction([peak for peak in peaks if peak])
    print(shape, bench.correction, *paths.lines(), sep="\n  ", flush=True)
    for name in arguments.packs:
        chosen = PACKS.get(name)
        if chosen is None:
            table = rows_of("128", base.profile.vocabulary)
            trials, tokens = limit_pack(bench, table, LIMITS[name])
        else:
            chosen = shrunk(chosen) if arguments.small else chosen
            trials, tokens = hyper_parameters(chosen), int(usual * chosen.share)
        row = compare(bench, name, trials, chosen.length if chosen else "128", tokens)
        row.pop("_peak")
        print(line(row), flush=True)
        append(RESULTS, row)
        rows.append(row)
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """The goals: mean error ≤ 2 %, worst ≤ 8 %, never more than 3 % under; "fits" is never wrong."""
    errors = np.array([error(row) for row in rows if row["survived"]])
    wrong = sum(row["verdict"] == "fits" and not row["survived"] for row in rows)
    return (
        f"{len(rows)} packs: mean error {np.abs(errors).mean():.1%}, worst over {errors.max():+.1%}, "
        f'worst under {errors.min():+.1%}; "fits" was wrong {wrong} times.'
    )


def main() -> None:
    """Measure the shapes asked for, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default=",".join(SHAPES), help="separated by commas")
    parser.add_argument("--packs", default=",".join([*PACKS, *LIMITS]), help="separated by commas")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--micro-batch-tokens", type=int, default=8192)
    parser.add_argument("--device-memory", default=None, help="what to size the last pack for, e.g. 24GiB")
    parser.add_argument(
        "--small", action="store_true", help="an eighth of the rows, of at most 64 tokens: for CPUs"
    )
    parser.add_argument(
        "--draw", action="store_true", help="draw the packs of the last day on a GPU, measure nothing"
    )
    arguments = parser.parse_args()
    if arguments.draw:
        with RESULTS.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if not row["device"].startswith("cpu")]
            draw([row for row in rows if row["date"] == rows[-1]["date"]], PICTURE)
        return
    arguments.packs = arguments.packs.split(",")
    rows = []
    for shape in arguments.shapes.split(","):
        rows += measure(shape, arguments)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    print(summary(rows), flush=True)


if __name__ == "__main__":
    main()
