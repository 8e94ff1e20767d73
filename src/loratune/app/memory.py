"""What a pack needs and what fits, from a configuration alone."""

from __future__ import annotations

from dataclasses import dataclass
from json import dumps
from typing import Any, get_args

from rich.console import Console

from loratune.app.workbench import MICRO_BATCH_TOKENS
from loratune.errors import InputError
from loratune.maths.memory import Device, Limits, MemoryEstimate, Verdict
from loratune.maths.targets import check_rank
from loratune.model.device import device_memory, parse_memory, pick_device
from loratune.model.precision import DType
from loratune.model.profile import profile_from_config
from loratune.reporting.terminal import print_memory
from loratune.values import HyperParameters


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryAnswer:
    """Predicted peak of a pack of equal trials, and what fits instead."""

    model: str
    estimate: MemoryEstimate
    device_bytes: int
    largest_batch: int
    """Rows of one trial in a single micro-batch; larger batches are cut into several."""
    largest_rank: int
    largest_pack: int
    """Trials side by side."""

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
            "verdict": self.verdict,
            "largest_batch": self.largest_batch,
            "largest_rank": self.largest_rank,
            "largest_trials": self.largest_pack,
        }


def estimate_memory(
    *,
    model: str,
    rank: int = 16,
    batch_size: int = 8,
    max_length: int = 512,
    trials: int = 1,
    dtype: str = "bfloat16",
    device_memory: str | None = None,
) -> MemoryAnswer:
    """The memory of `trials` trials of this rank and batch on rows of `max_length` tokens; reads no weights.

    Raises `InputError` for values out of range, `ModelError` for a model that cannot be read.
    """
    if max_length < 2 or trials < 1:
        raise InputError(
            f"--max-length must be at least 2 and --trials at least 1, got {max_length} and {trials}; raise them."
        )
    if dtype not in get_args(DType):
        raise InputError(
            f"--dtype must be one of {', '.join(get_args(DType))}, got {dtype!r}; change --dtype."
        )
    trial = HyperParameters(r=rank, lora_alpha=2 * rank, learning_rate=1e-3, batch_size=batch_size)
    available = _device_bytes(device_memory)
    profile = profile_from_config(model, dtype=dtype)  # type: ignore[arg-type]
    check_rank(profile.targets, rank)
    device: Device = "cuda" if pick_device("auto").type == "cuda" else "cpu"
    limits = Limits(
        model=profile,
        max_length=max_length,
        micro_batch_tokens=max(MICRO_BATCH_TOKENS[device], max_length),
        device_bytes=available,
        device=device,
    )
    return MemoryAnswer(
        model=model,
        estimate=limits.estimate([trial] * trials),
        device_bytes=available,
        largest_batch=limits.largest_batch(trial),
        largest_rank=limits.largest_rank(trial, trials),
        largest_pack=limits.largest_pack(trial),
    )


def _device_bytes(text: str | None) -> int:
    return device_memory(pick_device("auto")) if text is None else parse_memory(text)


def memory_command(*, as_json: bool, **options: Any) -> None:
    """Print the parts and what fits, or the document."""
    answer = estimate_memory(**options)
    if as_json:
        print(dumps(answer.to_dict()))
        return
    console = Console()
    print_memory(console, answer.estimate, answer.device_bytes)
    console.print(_limits_sentence(answer), highlight=False)


def _limits_sentence(answer: MemoryAnswer) -> str:
    if answer.largest_batch == 0:
        return "Not even one row of one such trial fits: take a shorter --max-length, a lower --rank or another model."
    return (
        f"At most {answer.largest_batch} rows at once in one trial, rank {answer.largest_rank}, or "
        f"{answer.largest_pack} such trials side by side; larger batches are cut into micro-batches."
    )
