"""Long rows: packs whose activations are computed again by layer, against PEFT with gradient checkpointing.

Both sides in one run on one device, same rows, ranks, targets and optimiser; tokens per second of forward, backward and
step, medians after a warm-up. How many layers run again is what the memory model chooses for the cell's memory, or
`--recompute`; a cell's memory is enforced on a GPU, and the predicted peak stands beside the measured one (tensors
alone, and all that the process takes). Appends rows to bench/results/long_rows.csv; on a GPU
`python bench/long_rows.py`.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from four_bit import free, held_to, pack, qlora
from loratune.costs.limits import Limits, execution_of
from loratune.engine.machinery import choose_paths
from loratune.engine.memory import is_memory_error
from loratune.errors import ResourceError
from loratune.model.base import BaseModel
from loratune.model.device import parse_memory
from peft_side import loop_rate
from record import append, circumstances
from rows import rows_of
from shapes import random_base
from tensors import tensor_bytes
from throughput import Cell, packed, recipe

RESULTS = Path(__file__).parent / "results" / "long_rows.csv"


@dataclass(frozen=True, kw_only=True, slots=True)
class LongRows:
    """One setting: a cell of throughput.py, and the memory that it is held to."""

    cell: Cell
    memory: str
    nf4: bool = False
    peft: bool = True
    recompute: int | None = None
    """Layers computed again; None: as the memory model chooses."""


def cell(length: int, slots: int, tokens: int = 0, *, shape: str = "llama3-8b", batch: int = 1) -> Cell:
    """Rows of one length; micro-batches of one row, or of `tokens`."""
    return Cell(
        shape=shape, batch=batch, slots=slots, length=str(length), micro_batch_tokens=tokens or length
    )


CELLS = {
    "16384": LongRows(cell=cell(16384, 2), memory="45GiB"),
    "16384-kept": LongRows(cell=cell(16384, 2), memory="138GiB", peft=False, recompute=0),
    "16384-all": LongRows(cell=cell(16384, 2), memory="45GiB", peft=False, recompute=32),
    "4096": LongRows(cell=cell(4096, 8), memory="138GiB"),
    "4096-wide": LongRows(cell=cell(4096, 8, 16384), memory="138GiB", peft=False),
    "4096-all": LongRows(cell=cell(4096, 8), memory="138GiB", peft=False, recompute=32),
    "32768": LongRows(cell=cell(32768, 1), memory="138GiB"),
    "nf4-8192": LongRows(cell=cell(8192, 1), memory="24GiB", nf4=True),
    "nf4-512": LongRows(cell=cell(512, 4, 4096, batch=2), memory="24GiB", nf4=True),
}
CPU_CELLS = {
    "cpu-256": LongRows(cell=cell(256, 2, shape="smollm2-135m"), memory="6GiB", recompute=20),
    "cpu-256-kept": LongRows(cell=cell(256, 2, shape="smollm2-135m"), memory="6GiB", recompute=0, peft=False),
}
SMALL_CELLS = {
    "tiny": LongRows(cell=cell(64, 2, shape="tiny"), memory="2GiB", recompute=1),
    "tiny-kept": LongRows(cell=cell(64, 2, shape="tiny"), memory="2GiB", recompute=0, peft=False),
}


def limits_of(base: BaseModel, setting: LongRows) -> Limits:
    """The memory model of a cell."""
    cuda, cell = base.device.type == "cuda", setting.cell
    paths = choose_paths(base, longest=int(cell.length))
    return Limits(
        model=base.profile,
        max_length=int(cell.length),
        micro_batch_tokens=cell.micro_batch_tokens,
        device_bytes=parse_memory(setting.memory),
        execution=execution_of("cuda" if cuda else "cpu", paths),
        supervised=cell.supervised / int(cell.length),
        recompute=setting.recompute,
    )


def own(base: BaseModel, setting: LongRows, seconds: float) -> dict[str, Any]:
    """The pack's speed and memory beside what is predicted."""
    cell, limits = setting.cell, limits_of(base, setting)
    trials = [recipe(cell, cell.ranks[0])] * cell.slots
    estimate, layers = limits.fullest(trials), limits.recomputed_when_fullest(trials)
    found: dict[str, Any] = {
        "recomputed": layers, "layers": base.profile.layers,
        "predicted_gib": round(tensor_bytes(estimate) / 2**30, 2),
        "predicted_total_gib": round(estimate.total / 2**30, 2),
    }  # fmt: skip
    try:
        measured = packed(base, cell, cell.slots, seconds, recompute=lambda trials, tokens: layers)
    except ResourceError:
        return found | {"pack": "", "peak_gib": "", "held_gib": ""}
    held = torch.cuda.max_memory_reserved() + limits.execution.runtime if base.device.type == "cuda" else 0
    return found | {
        "pack": round(measured.rate, 1), "peak_gib": round(measured.peak_gib, 2), "held_gib": round(held / 2**30, 2),
    }  # fmt: skip


def checkpointed(base: BaseModel, cell: Cell, seconds: float) -> tuple[float, float]:
    """Tokens per second and peak GiB of one trial under PEFT with gradient checkpointing; 0 where it does not fit."""
    rows = rows_of(cell.length, base.profile.vocabulary, supervised=cell.supervised, rows=64)
    base.model.gradient_checkpointing_enable({"use_reentrant": False})
    base.model.enable_input_require_grads()
    try:
        rate = loop_rate(base, rows, recipe(cell, cell.ranks[0]), seconds)
    except RuntimeError as error:
        if not is_memory_error(error):
            raise
        rate = 0.0
    finally:
        base.model.disable_input_require_grads()
        base.model.gradient_checkpointing_disable()
        base.model.eval()
    return rate, torch.cuda.max_memory_allocated() / 2**30 if base.device.type == "cuda" else 0.0


def measure(name: str, setting: LongRows, base: BaseModel, seconds: float) -> None:
    """Both sides of a cell; prints and appends a row."""
    cell = setting.cell
    row: dict[str, Any] = {
        "cell": name, "shape": cell.shape, "dtype": "nf4" if setting.nf4 else str(base.dtype).removeprefix("torch."),
        "length": cell.length, "trials": cell.slots, "batch": cell.batch, "rank": cell.ranks[0],
        "micro_batch_tokens": cell.micro_batch_tokens, "memory": setting.memory,
    }  # fmt: skip
    with held_to(base, setting.memory if base.device.type == "cuda" else None):
        row |= own(base, setting, seconds)
    if setting.peft:
        with held_to(base, setting.memory if setting.nf4 and base.device.type == "cuda" else None):
            rate, peak = (qlora if setting.nf4 else checkpointed)(base, cell, seconds)
        row |= {"peft_checkpointed": round(rate, 1), "peft_gib": round(peak, 2)}
    print(row, flush=True)
    append(RESULTS, circumstances() | row)


def main() -> None:
    """Measure the named cells, those on one base one after the other."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", default="all", help="names, separated by commas, or all")
    parser.add_argument("--small", action="store_true", help="a tiny shape, to see that it runs")
    parser.add_argument("--recompute", type=int, help="layers computed again, of every cell")
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    cells = SMALL_CELLS if arguments.small else CELLS if cuda else CPU_CELLS
    names = list(cells) if arguments.cells == "all" else arguments.cells.split(",")
    if unknown := [name for name in names if name not in cells]:
        parser.error(f"--cells must be of {', '.join(cells)}, got {', '.join(unknown)}.")
    chosen = {name: cells[name] for name in sorted(names, key=lambda name: cells[name].nf4)}
    if arguments.recompute is not None:
        chosen = {name: replace(each, recompute=arguments.recompute) for name, each in chosen.items()}
    dtype = torch.bfloat16 if cuda else torch.float32
    base, kind = None, None
    for name, setting in chosen.items():
        if setting.nf4 and kind is not None and kind[1]:
            base = None  # QLoRA changes the model for good
        if base is None or kind != (setting.cell.shape, setting.nf4):
            base = None
            free()
            base = random_base(setting.cell.shape, dtype, "cuda" if cuda else "cpu")
            base = pack(base) if setting.nf4 else base
        kind = setting.cell.shape, setting.nf4
        measure(name, setting, base, arguments.seconds)
        free()


if __name__ == "__main__":
    main()
