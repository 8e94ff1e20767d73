"""What a pack needs and what fits, from a configuration alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from json import dumps
from typing import Any, cast, get_args

from loratune.costs.execution import Device
from loratune.costs.limits import Limits, device_bytes, execution_of
from loratune.costs.memory import MemoryEstimate, Verdict
from loratune.errors import InputError
from loratune.maths.sizes import CAPACITY
from loratune.maths.targets import check_rank, select_targets
from loratune.model.device import DType, parse_memory, pick_device
from loratune.model.nf4 import NF4
from loratune.model.profile import profile_from_config
from loratune.reporting.screen import Screen
from loratune.reporting.terminal import print_memory
from loratune.reporting.wording import count
from loratune.values import ALL_LINEAR, HyperParameters

_SHARE_TOKENS: dict[Device, int] = {"cpu": 2048, "cuda": 16384}
"""Of a micro-batch where nothing is measured and memory allows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryAnswer:
    """Predicted peak of a pack of equal trials, and what fits instead."""

    model: str
    estimate: MemoryEstimate
    device_bytes: int
    device: Device
    micro_batch_tokens: int
    """What the estimate assumes a micro-batch to hold."""
    largest_batch: int
    """Rows of one trial in a single micro-batch; larger batches are cut into several."""
    largest_rank: int
    """Of as many trials, however small micro-batches must be; as all limits 0 where nothing fits."""
    largest_pack: int
    """Trials side by side, however small micro-batches must be."""
    largest_micro_batch: int
    """Tokens that a micro-batch of this pack may hold."""
    notes: tuple[str, ...] = ()
    """What is unusual about adapting the model."""

    @property
    def verdict(self) -> Verdict:
        return self.estimate.verdict(self.device_bytes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; bytes."""
        return {
            "model": self.model,
            "parts": self.estimate.parts,
            "total": self.estimate.total,
            "device": self.device_bytes,
            "device_kind": self.device,
            "verdict": self.verdict,
            "micro_batch_tokens": self.micro_batch_tokens,
            "largest_batch": self.largest_batch,
            "largest_rank": self.largest_rank,
            "largest_trials": self.largest_pack,
            "largest_micro_batch_tokens": self.largest_micro_batch,
            "notes": self.notes,
        }


def estimate_memory(
    *,
    model: str,
    rank: int = 16,
    batch_size: int = 8,
    max_length: int = 512,
    trials: int = 1,
    target_modules: tuple[str, ...] = ALL_LINEAR,
    dtype: str = "bfloat16",
    device: str = "auto",
    device_memory: str | None = None,
) -> MemoryAnswer:
    """What it takes to train `trials` trials of one kind beside each other, and what fits instead; reads no weights.

    Args:
        model: Model folder, config.json, .gguf file or hub name.
        rank, batch_size, target_modules: Of every trial.
        max_length: Tokens of the longest row.
        trials: Trials trained at once.
        dtype: Base weights: "bfloat16", "float32" or "nf4".
        device: "cpu", "cuda" (also without one) or "auto": this machine's, or a GPU where `device_memory` is given.
        device_memory: Of the device, e.g. "24GiB"; by default what this machine's has.

    Raises `InputError` for values out of range, `ModelError` for a model that cannot be read.
    """
    if max_length < 2:
        raise InputError(f"--max-length must be at least 2, got {max_length}; raise it.")
    if not 1 <= trials <= CAPACITY:
        raise InputError(
            f"--trials must be 1 to {CAPACITY}, which is what one pack holds, got {trials}; change it."
        )
    kinds = get_args(DType)
    if dtype not in kinds:
        raise InputError(f"--dtype must be one of {', '.join(kinds)}, got {dtype!r}; change --dtype.")
    trial = HyperParameters(
        r=rank, lora_alpha=2 * rank, learning_rate=1e-3, batch_size=batch_size, target_modules=target_modules
    )
    kind, available = _device(device, device_memory)
    packs = dtype == NF4
    computing = ("bfloat16" if kind == "cuda" else "auto") if packs else dtype
    where = "cpu" if kind == "cpu" else "auto"
    profile = profile_from_config(model, dtype=cast(DType, computing), device=where, packs=packs)
    check_rank(select_targets(profile.targets, target_modules), rank)
    limits = Limits(
        model=profile,
        max_length=max_length,
        micro_batch_tokens=max_length,
        device_bytes=available,
        execution=execution_of(kind),
    )
    room = limits.largest_micro_batch([trial] * trials)
    limits = replace(limits, micro_batch_tokens=max(max_length, min(room, _SHARE_TOKENS[kind])))
    return MemoryAnswer(
        model=model,
        estimate=limits.fullest([trial] * trials),
        device_bytes=available,
        device=kind,
        micro_batch_tokens=limits.micro_batch_tokens,
        largest_batch=limits.largest_batch(trial),
        largest_rank=limits.largest_rank(trial, trials),
        largest_pack=limits.largest_pack(trial, CAPACITY),
        largest_micro_batch=room,
        notes=profile.notes,
    )


def _device(name: str, memory: str | None) -> tuple[Device, int]:
    """Its kind and its bytes; a device that is not here needs its memory told."""
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device must be auto, cpu or cuda, got {name!r}; change --device.")
    if memory is not None:
        return ("cpu" if name == "cpu" else "cuda"), parse_memory(memory)
    here = pick_device(name)
    kind: Device = "cuda" if here.type == "cuda" else "cpu"
    return kind, device_bytes(None, here, execution_of(kind))


def memory_command(*, as_json: bool, **options: Any) -> None:
    """Print the parts and what fits, or the document."""
    answer = estimate_memory(**options)
    if as_json:
        print(dumps(answer.to_dict()))
        return
    console = Screen()
    for note in answer.notes:
        console.print(note, highlight=False, markup=False)
    print_memory(console, answer.estimate, answer.device_bytes)
    for line in _limits_lines(answer):
        console.print(line, highlight=False, markup=False)


def _limits_lines(answer: MemoryAnswer) -> list[str]:
    fitting = [
        text
        for limit, text in (
            (answer.largest_rank, f"rank {answer.largest_rank}"),
            (answer.largest_pack, f"{answer.largest_pack} such trials side by side"),
            (
                answer.largest_batch,
                f"{answer.largest_batch} rows of one trial at once (larger batches are cut into micro-batches)",
            ),
            (answer.largest_micro_batch, f"micro-batches of {count(answer.largest_micro_batch)} tokens"),
        )
        if limit
    ]
    if not fitting:
        return [
            "Not even one row at rank 1 fits: take a shorter --max-length, fewer --trials or another model."
        ]
    return [
        f"Counted for a {'GPU' if answer.device == 'cuda' else 'CPU'} and micro-batches of "
        f"{count(answer.micro_batch_tokens)} tokens.",
        "What fits with room to spare, each with all else as asked and micro-batches as small as one row: "
        f"{'; '.join(fitting)}.",
    ]
