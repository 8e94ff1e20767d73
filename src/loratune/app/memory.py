"""What a pack needs and what fits, from a configuration alone."""

from __future__ import annotations

from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import Any, get_args

from loratune.costs.advice import MemoryAnswer, memory_answer
from loratune.costs.execution import Device
from loratune.costs.limits import device_bytes, execution_of
from loratune.errors import InputError
from loratune.maths.sizes import CAPACITY
from loratune.model.device import DType, parse_memory, pick_device
from loratune.reporting.fitting import fitting_lines
from loratune.reporting.screen import Screen
from loratune.reporting.terminal import print_memory
from loratune.values import ALL_LINEAR, HyperParameters
from loratune.values.tasks import CAUSAL, TASKS

NOTHING_FITS = 4
"""Exit code where no advice helps either."""


def estimate_memory(
    *,
    model: str | Path,
    rank: int = 16,
    batch_size: int = 8,
    max_length: int = 512,
    trials: int = 1,
    target_modules: Sequence[str] = ALL_LINEAR,
    dtype: str = "bfloat16",
    device: str = "auto",
    device_memory: str | None = None,
    recompute: str = "auto",
    task: str = CAUSAL.name,
) -> MemoryAnswer:
    """What it takes to train `trials` trials of one kind side by side, and what fits instead; reads no weights.

    Args:
        model: Model folder, config.json, .gguf file or hub name.
        rank, batch_size, target_modules: Of every trial.
        max_length: Tokens of the longest row.
        trials: Trials trained at once.
        dtype: Base weights: "bfloat16", "float32" or "nf4".
        device: "cpu", "cuda" (also without one) or "auto": this machine's, or a GPU where `device_memory` is given.
        device_memory: Of the device, e.g. "24GiB"; by default what this machine's has.
        recompute: Layers whose activations are computed again: "auto" (as few as let it fit), "none", "all", a number.
        task: "causal", "preference" (the batch size counts pairs), or "classification": with a head of two classes,
            which every trial trains.

    Raises `InputError` for values out of range, `ModelError` for a model that cannot be read.
    """
    if max_length < 2:
        raise InputError(f"--max-length must be at least 2, got {max_length}; give e.g. 512.")
    if not 1 <= trials <= CAPACITY:
        raise InputError(
            f"--trials must be 1 to {CAPACITY}, which is what one pack holds, got {trials}; try --trials {CAPACITY}."
        )
    kinds = get_args(DType)
    if dtype not in kinds:
        raise InputError(
            f"--dtype must be one of {', '.join(kinds)}, got {dtype!r}; give e.g. --dtype bfloat16."
        )
    if task not in TASKS:
        raise InputError(
            f"--task must be one of {', '.join(TASKS)}, got {task!r}; give e.g. --task {CAUSAL.name}."
        )
    learnt = TASKS[task]
    kind, available = _device(device, device_memory)
    trial = HyperParameters(
        r=rank,
        lora_alpha=2 * rank,
        learning_rate=1e-3,
        batch_size=learnt.group * batch_size,
        target_modules=tuple(target_modules),
    )
    return memory_answer(
        str(model),
        trial,
        trials,
        max_length=max_length,
        dtype=dtype,
        device=kind,
        available=available,
        recompute=recompute,
        task=learnt,
    )


def _device(name: str, memory: str | None) -> tuple[Device, int]:
    """Its kind and its bytes; a device that is not here needs its memory named."""
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device must be auto, cpu or cuda, got {name!r}; give e.g. --device cuda.")
    if memory is not None:
        return ("cpu" if name == "cpu" else "cuda"), parse_memory(memory)
    here = pick_device(name)
    kind: Device = "cuda" if here.type == "cuda" else "cpu"
    return kind, device_bytes(None, here, execution_of(kind))


def memory_command(*, as_json: bool, **options: Any) -> int:
    """Print the parts and what fits, or the document; returns the exit code."""
    answer = estimate_memory(**options)
    code = NOTHING_FITS if answer.verdict == "does not fit" and not answer.changes else 0
    if as_json:
        print(dumps(answer.to_dict()))
        return code
    console = Screen()
    for note in answer.notes:
        console.print(note, highlight=False, markup=False)
    print_memory(console, answer.estimate, answer.device_bytes, answer.recomputed, answer.layers)
    for line in fitting_lines(answer):
        console.print(line, highlight=False, markup=False)
    return code
