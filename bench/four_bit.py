"""A pack on a base in 4 bits against the same pack on whole weights, and against PEFT's QLoRA as people run it.

All sides in one run on one device, same rows, ranks, targets and optimiser; tokens per second of forward, backward and
step, medians after a warm-up. On a GPU the 4-bit sides get no more memory than the cell allows (24 GiB), enforced; the
predicted peak stands beside the measured one. QLoRA: bitsandbytes' own layers, `prepare_model_for_kbit_training`,
gradient checkpointing. Appends rows to bench/results/four_bit.csv. On a GPU: `python bench/four_bit.py`.
"""

import argparse
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import prepare_model_for_kbit_training

from loratune.costs.limits import Limits, execution_of
from loratune.engine.machinery import choose_paths
from loratune.model.base import BaseModel
from loratune.model.device import limit_memory, parse_memory
from loratune.model.nf4 import adopt_layers, as_bitsandbytes_runs, layers_to_pack
from loratune.model.profile import profile_of
from peft_side import loop_rate
from record import append, circumstances
from rows import rows_of
from shapes import random_base
from tensors import tensor_bytes
from throughput import Cell, packed, recipe

RESULTS = Path(__file__).parent / "results" / "four_bit.csv"


@dataclass(frozen=True, kw_only=True, slots=True)
class FourBit:
    """One setting: a cell of throughput.py and what its 4-bit sides are held to."""

    cell: Cell
    dtype: torch.dtype
    memory: str | None = None


CELLS = {
    # on 24 GiB micro-batches are what `loratune memory` allows; without a limit all 4,096 tokens are in flight
    "8b-512": FourBit(
        cell=Cell(shape="llama3-8b", batch=2, slots=4, length="512", micro_batch_tokens=2816),
        dtype=torch.bfloat16,
        memory="24GiB",
    ),
    "8b-512-8": FourBit(
        cell=Cell(shape="llama3-8b", batch=1, slots=8, length="512", micro_batch_tokens=2048),
        dtype=torch.bfloat16,
        memory="24GiB",
    ),
    "8b-512-wide": FourBit(
        cell=Cell(shape="llama3-8b", batch=2, slots=4, length="512", micro_batch_tokens=4096),
        dtype=torch.bfloat16,
    ),
}
CPU_CELLS = {
    f"cpu-{name}": FourBit(
        cell=Cell(shape="smollm2-135m", batch=2, slots=4, length="64", ranks=(8,), micro_batch_tokens=2048),
        dtype=dtype,
    )
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
}


def pack(base: BaseModel) -> BaseModel:
    """The same model with its linear layers in NF4, one after the other; `base` is used up."""
    from bitsandbytes.nn import (
        Linear4bit,
        Params4bit,
    )  # other benches import this file for what runs without it

    model = base.model
    for name in layers_to_pack(model):
        plain = model.get_submodule(name)
        with torch.device("meta"):
            layer = Linear4bit(
                plain.in_features, plain.out_features, plain.bias is not None, base.dtype, quant_type="nf4"
            )
        layer.weight = Params4bit(plain.weight.data, requires_grad=False, quant_type="nf4").to(base.device)
        layer.bias = plain.bias
        model.set_submodule(name, layer.eval())
    model.is_loaded_in_4bit = True
    adopt_layers(model, base.dtype, "random weights")
    return replace(base, profile=profile_of(model, base.profile.name))


@contextmanager
def held_to(base: BaseModel, memory: str | None) -> Iterator[None]:
    """In this block the process has no more of a GPU, its context included."""
    free()
    allowed = None if memory is None else parse_memory(memory) - execution_of("cuda").runtime
    limit_memory(base.device, allowed)
    try:
        yield
    finally:
        limit_memory(base.device, None)
        free()


def free() -> None:
    """Give back what the last side held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def predicted_gib(base: BaseModel, cell: Cell) -> float:
    """Peak of the pack's tensors."""
    limits = Limits(
        model=base.profile,
        max_length=int(cell.length),
        micro_batch_tokens=cell.micro_batch_tokens,
        device_bytes=0,
        execution=execution_of(
            "cuda" if base.device.type == "cuda" else "cpu", choose_paths(base, longest=0)
        ),
        supervised=cell.supervised / int(cell.length),
    )
    trials = [recipe(cell, cell.ranks[0])] * cell.slots
    step = cell.slots * cell.batch * int(cell.length)
    return tensor_bytes(limits.estimate(trials, step_tokens=step)) / 2**30


def qlora(base: BaseModel, cell: Cell, seconds: float) -> tuple[float, float]:
    """Tokens per second and peak GiB of one trial under PEFT; changes the model for good."""
    rows = rows_of(cell.length, base.profile.vocabulary, supervised=cell.supervised)
    with as_bitsandbytes_runs(base.model):
        prepare_model_for_kbit_training(base.model, gradient_checkpointing_kwargs={"use_reentrant": False})
        rate = loop_rate(base, rows, recipe(cell, cell.ranks[0]), seconds)
    peak = torch.cuda.max_memory_allocated() / 2**30 if base.device.type == "cuda" else 0.0
    return rate, peak


def measure(name: str, setting: FourBit, seconds: float) -> None:
    """All sides of a cell; prints and appends a row."""
    cell, where = setting.cell, "cuda" if torch.cuda.is_available() else "cpu"
    row: dict[str, Any] = {
        "cell": name, "shape": cell.shape, "dtype": str(setting.dtype).removeprefix("torch."), "batch": cell.batch,
        "slots": cell.slots, "length": cell.length, "rank": cell.ranks[0], "memory": setting.memory or "",
    }  # fmt: skip
    plain = random_base(cell.shape, setting.dtype, where)
    whole = packed(plain, cell, cell.slots, seconds)
    four = pack(plain)
    del plain
    with held_to(four, setting.memory):
        found = packed(four, cell, cell.slots, seconds)
        alone = packed(four, cell, 1, seconds)
        predicted = predicted_gib(four, cell)  # before QLoRA changes the model, and with it the paths
    with held_to(four, setting.memory):
        peft, peft_peak = qlora(four, cell, seconds)
    row |= {
        "plain_pack": round(whole.rate, 1), "nf4_pack": round(found.rate, 1), "nf4_one_trial": round(alone.rate, 1),
        "qlora": round(peft, 1), "over_plain": round(found.rate / whole.rate, 3),
        "over_qlora": round(found.rate / peft, 2), "plain_gib": round(whole.peak_gib, 2),
        "nf4_gib": round(found.peak_gib, 2), "predicted_gib": round(predicted, 2),
        "qlora_gib": round(peft_peak, 2),
    }  # fmt: skip
    print(row, flush=True)
    append(RESULTS, circumstances() | row)


def main() -> None:
    """Measure the named cells."""
    cells = CELLS if torch.cuda.is_available() else CPU_CELLS
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", default="all", help="names, separated by commas, or all")
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    names = list(cells) if arguments.cells == "all" else arguments.cells.split(",")
    if unknown := [name for name in names if name not in cells]:
        parser.error(f"--cells must be of {', '.join(cells)}, got {', '.join(unknown)}.")
    for name in names:
        measure(name, cells[name], arguments.seconds)
        free()


if __name__ == "__main__":
    main()
