"""Training speed of packs against plain PEFT, both measured in one run on one device.

Same rows, batch, rank, targets, dtype and optimiser on both sides (AdamW, clipping to 1, all linear modules); tokens
per second of forward, backward and step, real tokens only, medians after a warm-up. A cell is a named setting;
`--cells all` runs them in order, `--skip-done` those without a row of this commit and device. Prints a table as it
goes and appends every row to bench/results/throughput.csv. Imports neither optuna nor datasets.
"""

import argparse
import csv
import gc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from loratune.engine.machinery import choose_paths
from loratune.engine.pack import PackEngine
from loratune.engine.recompute import Recompute, none
from loratune.model.base import BaseModel
from loratune.values import HyperParameters, Trial
from peft_side import concurrent_rate, loop_rate, trainer_rate
from record import append, circumstances
from rows import rows_of
from shapes import random_base

RESULTS = Path(__file__).parent / "results" / "throughput.csv"
WARM_UP = 20
"""Steps at most before the measured ones: shapes are compiled and recorded."""
MIXED = (4, 8, 16, 32, 64, 128)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One setting."""

    shape: str
    batch: int
    slots: int
    length: str = "128"
    supervised: int = 16
    """Tokens of a row, where all rows have one length."""
    ranks: tuple[int, ...] = (16,)
    micro_batch_tokens: int = 16384
    processes: tuple[int, ...] = ()
    """Numbers of concurrent PEFT processes to try."""
    variants: bool = False
    """Whether Trainer and a compiled loop are measured beside the plain loop."""
    peft: bool = True


@dataclass(slots=True)
class Measured:
    """Of our engine."""

    rate: float
    peak_gib: float
    launches: int = 0
    host_ms: float = 0.0
    busy: float = 0.0
    padding: float = 0.0
    """Share of the computed tokens that are not of a row."""


CELLS = {
    "0.5b-b4": Cell(shape="qwen2-0.5b", batch=4, slots=128, micro_batch_tokens=32768, processes=(8, 14), variants=True),
    "0.5b-b4-32": Cell(shape="qwen2-0.5b", batch=4, slots=32),
    "0.5b-b16": Cell(shape="qwen2-0.5b", batch=16, slots=32, micro_batch_tokens=32768, processes=(8,)),
    "0.5b-b1": Cell(shape="qwen2-0.5b", batch=1, slots=128),
    "0.5b-mixed": Cell(shape="qwen2-0.5b", batch=4, slots=60, ranks=MIXED, peft=False),
    # what the mixed pack is compared with: time of the mixed pack against the sum of its parts at these speeds
    **{
        f"0.5b-r{rank}": Cell(shape="qwen2-0.5b", batch=4, slots=32, ranks=(rank,), peft=False)
        for rank in (4, 8, 32, 64, 128)
    },
    # rows of one length beside real ones: as many tokens of a row supervised on the average, since predicting costs
    **{
        f"{shape}-{data}-equal": Cell(
            shape=full, batch=batch, slots=slots, length=str(length), supervised=supervised,
            micro_batch_tokens=tokens, peft=False,
        )
        for shape, full, data, batch, slots, length, supervised, tokens in (
            ("0.5b", "qwen2-0.5b", "banking77", 16, 32, 25, 5, 16384),
            ("1b", "llama3-1b", "gsm8k", 4, 32, 191, 126, 32768),
            ("1b", "llama3-1b", "banking77", 16, 32, 25, 5, 32768),
            ("8b", "llama3-8b", "banking77", 16, 16, 25, 5, 8192),
        )
    },
    "0.5b-banking77": Cell(shape="qwen2-0.5b", batch=16, slots=32, length="banking77"),
    "1b-b4": Cell(shape="llama3-1b", batch=4, slots=64, micro_batch_tokens=32768, processes=(4, 8), variants=True),
    "1b-b16": Cell(shape="llama3-1b", batch=16, slots=16, micro_batch_tokens=32768),
    "1b-b64": Cell(shape="llama3-1b", batch=64, slots=4, micro_batch_tokens=32768),
    "1b-64": Cell(shape="llama3-1b", batch=16, slots=32, length="64", micro_batch_tokens=32768),
    "1b-256": Cell(shape="llama3-1b", batch=4, slots=32, length="256", micro_batch_tokens=32768),
    "1b-1024": Cell(shape="llama3-1b", batch=4, slots=8, length="1024", micro_batch_tokens=32768),
    "1b-mixed": Cell(shape="llama3-1b", batch=4, slots=30, ranks=MIXED, peft=False),
    "1b-gsm8k": Cell(shape="llama3-1b", batch=4, slots=32, length="gsm8k", micro_batch_tokens=32768),
    "1b-banking77": Cell(shape="llama3-1b", batch=16, slots=32, length="banking77", micro_batch_tokens=32768),
    "8b-b4": Cell(shape="llama3-8b", batch=4, slots=16, micro_batch_tokens=8192, variants=True),
    "8b-b16": Cell(shape="llama3-8b", batch=16, slots=8, micro_batch_tokens=8192),
    "8b-mixed": Cell(shape="llama3-8b", batch=4, slots=12, ranks=MIXED, micro_batch_tokens=8192, peft=False),
    "8b-banking77": Cell(shape="llama3-8b", batch=16, slots=16, length="banking77", micro_batch_tokens=8192),
    # short real rows, as a search trains them: many trials, each with few tokens in a step
    **{
        f"short-{slots}": Cell(
            shape="smollm2-135m", batch=16, slots=slots, length="banking77", micro_batch_tokens=65536, peft=False
        )
        for slots in (1, 4, 16, 32, 64, 128)
    },
    "short-0.5b-64": Cell(
        shape="qwen2-0.5b", batch=16, slots=64, length="banking77", micro_batch_tokens=32768, peft=False
    ),
    **{
        f"growth-{slots}": Cell(shape="qwen2-0.5b", batch=4, slots=slots, peft=False)
        for slots in (1, 2, 4, 8, 16, 64)
    },
}  # fmt: skip
CPU_CELLS = {
    f"cpu-{dtype}": Cell(
        shape="smollm2-135m", batch=4, slots=8, length="banking77", ranks=(8,), micro_batch_tokens=2048
    )
    for dtype in ("float32", "bfloat16")
}


def recipe(cell: Cell, rank: int) -> HyperParameters:
    """Hyper-parameters of a trial of the cell."""
    return HyperParameters(
        r=rank, lora_alpha=2 * rank, learning_rate=2e-4, batch_size=cell.batch, epochs=1000.0
    )


def packed(
    base: BaseModel,
    cell: Cell,
    slots: int,
    seconds: float,
    *,
    profile: bool = False,
    recompute: Recompute = none,
) -> Measured:
    """Our engine with that many trials."""
    rows = rows_of(cell.length, base.profile.vocabulary, supervised=cell.supervised)
    engine = PackEngine(
        base=base,
        train=rows,
        validation=rows.take(range(8)),
        study_seed=0,
        cost=lambda trial: 1.0,
        max_tokens_per_micro_batch=cell.micro_batch_tokens,
        recompute=recompute,
    )
    trials = [
        Trial(hyper_parameters=recipe(cell, cell.ranks[i % len(cell.ranks)]), seed=i // len(cell.ranks))
        for i in range(slots)
    ]
    live = engine.slots(trials)
    cuda = base.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    rates: list[float] = []
    with engine.attached() as step:
        begun, count = perf_counter(), 0
        while count < 2 or (perf_counter() - begun < seconds and count < WARM_UP):
            step(live)
            count += 1
        real, step.computed_tokens = 0, 0
        begun = perf_counter()
        while perf_counter() - begun < seconds or len(rates) < 3:
            started = perf_counter()
            tokens = step(live)
            real += tokens
            rates.append(tokens / (perf_counter() - started))
        found = Measured(
            rate=median(rates),
            peak_gib=torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0,
            padding=1 - real / step.computed_tokens,
        )
        if profile and cuda:
            _profile(lambda: step(live), found)
    return found


def _profile(step: Any, found: Measured) -> None:
    """Launches, host time and share of the time in which the device works, of one step."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        step()
        torch.cuda.synchronize()
    events = profiler.events()
    kernels = [event for event in events if event.device_type.name == "CUDA"]
    wall = max(e.time_range.end for e in events) - min(e.time_range.start for e in events)
    waiting = sum(e.time_range.elapsed_us() for e in events if "Synchronize" in e.name)
    found.launches = len(kernels)
    found.busy = sum(e.time_range.elapsed_us() for e in kernels) / wall
    found.host_ms = (wall - waiting) / 1e3


def ceiling() -> float:
    """FLOP/s of a bf16 product of 8192 x 8192 matrices on this device."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times: list[float] = []
    for _ in range(30):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        a @ b
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return 2 * 8192**3 / median(times)


def useful_flops(base: BaseModel) -> float:
    """Per token: forward and the gradient of the inputs through all weights but embeddings and head."""
    skipped = {id(m.weight) for m in (base.model.get_input_embeddings(), base.model.get_output_embeddings())}
    return 4.0 * float(sum(p.numel() for p in base.model.parameters() if id(p) not in skipped))


def measure(name: str, cell: Cell, base: BaseModel, limit: float, arguments: argparse.Namespace) -> float:
    """Tokens per second of our pack; both sides of one cell; prints and appends a row."""
    seconds = arguments.seconds
    row: dict[str, Any] = {
        "cell": name, "shape": cell.shape, "dtype": str(base.dtype).removeprefix("torch."), "batch": cell.batch,
        "slots": cell.slots, "length": cell.length, "supervised": cell.supervised,
        "ranks": " ".join(map(str, cell.ranks)),
        "micro_batch_tokens": cell.micro_batch_tokens,
    }  # fmt: skip
    pack = packed(base, cell, cell.slots, seconds, profile=True)
    alone = packed(base, cell, 1, min(seconds, 3.0)) if cell.peft else None
    row |= {
        "pack": round(pack.rate), "one_trial": round(alone.rate) if alone else "",
        "share_of_ceiling": round(pack.rate * useful_flops(base) / limit, 3) if limit else "",
        "peak_gib": round(pack.peak_gib, 2), "launches": pack.launches, "host_ms": round(pack.host_ms, 1),
        "busy": round(pack.busy, 3), "padding": round(pack.padding, 3),
    }  # fmt: skip
    rows = rows_of(cell.length, base.profile.vocabulary, supervised=cell.supervised)
    mine = recipe(cell, cell.ranks[0])
    rates = {"peft_loop": 0.0, "peft_trainer": 0.0, "peft_compiled": 0.0}
    if cell.peft and not arguments.skip_peft:
        rates["peft_loop"] = loop_rate(base, rows, mine, seconds)
        if cell.variants:
            rates["peft_trainer"] = trainer_rate(base, rows, mine, seconds)
            rates["peft_compiled"] = loop_rate(base, rows, mine, seconds, compiled=True)
    best = max(rates.values())
    row |= {key: round(value) or "" for key, value in rates.items()}
    together = {
        k: concurrent_rate(cell.shape, cell.batch, cell.length, k, seconds)
        for k in (() if arguments.skip_peft else cell.processes)
    }
    k, shared = max(together.items(), key=lambda item: item[1], default=("", 0.0))
    row |= {
        "processes": k, "peft_concurrent": round(shared) or "",
        "over_peft": round(pack.rate / best, 2) if best else "",
        "over_concurrent": round(pack.rate / shared, 2) if shared else "",
        "one_over_peft": round(alone.rate / best, 2) if best and alone else "",
    }  # fmt: skip
    print({key: value for key, value in row.items() if value != ""}, flush=True)
    append(RESULTS, circumstances() | row)
    return pack.rate


def measured() -> dict[str, float]:
    """Tokens per second of our pack, by cell: rows that are there of this commit and device."""
    if not RESULTS.exists():
        return {}
    now = circumstances()
    with RESULTS.open(newline="", encoding="utf-8") as file:
        return {
            row["cell"]: float(row["pack"])
            for row in csv.DictReader(file)
            if row["cell"] and all(row[key] == now[key] for key in ("commit", "device"))
        }


def tell_parts(rates: Mapping[str, float]) -> None:
    """Mixed ranks against the sum of their parts, real lengths against equal ones; where all of it was measured."""
    alone = {16: "0.5b-b4-32"} | {rank: f"0.5b-r{rank}" for rank in MIXED if rank != 16}
    if "0.5b-mixed" in rates and rates.keys() >= set(alone.values()):
        parts = len(MIXED) / sum(
            1 / rates[name] for name in alone.values()
        )  # each rank trains as many tokens
        print(
            f"mixed ranks: {rates['0.5b-mixed'] / parts:.1%} of the speed of their parts ({parts:.0f} tokens/s)"
        )
    for name, rate in rates.items():
        if (equal := rates.get(f"{name}-equal")) is not None:
            print(f"{name}: {rate / equal:.1%} of the speed with rows of one length ({equal:.0f} tokens/s)")


def main() -> None:
    """Measure the named cells."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", default="all", help="names, separated by commas, or all")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--skip-peft", action="store_true")
    parser.add_argument("--skip-done", action="store_true", help="leave out cells with a row already")
    arguments = parser.parse_args()
    cuda = torch.cuda.is_available()
    cells = CELLS if cuda else CPU_CELLS
    names = list(cells) if arguments.cells == "all" else arguments.cells.split(",")
    if unknown := [name for name in names if name not in cells]:
        parser.error(f"--cells must be of {', '.join(cells)}, got {', '.join(unknown)}.")
    done = measured() if arguments.skip_done else {}
    rates = {name: done[name] for name in names if name in done}
    names = [name for name in names if name not in rates]
    if not names:
        print(f"All of these cells have a row of this commit and device in {RESULTS.name}.")
        return
    limit = ceiling() if cuda else 0.0
    print(f"ceiling {limit / 1e12:.0f} TFLOP/s" if cuda else f"{torch.get_num_threads()} threads", flush=True)
    base, loaded = None, ("", "")
    for name in names:
        cell = cells[name]
        dtype = name.rpartition("-")[2] if not cuda else "bfloat16"
        if (cell.shape, dtype) != loaded:
            base = None
            gc.collect()
            torch.cuda.empty_cache()
            base = random_base(cell.shape, getattr(torch, dtype), "cuda" if cuda else "cpu")
            loaded = cell.shape, dtype
            print(*choose_paths(base, longest=0).lines(), sep="\n", flush=True)
        assert base is not None
        rates[name] = measure(name, cell, base, limit, arguments)
        gc.collect()
        torch.cuda.empty_cache()
    tell_parts(rates)


if __name__ == "__main__":
    main()
