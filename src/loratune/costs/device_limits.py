"""What fits in the memory of the device at hand: the base model, the rows and the paths that the engine takes.

Knows no trial and no command.
"""

from dataclasses import replace

import torch

from loratune.costs.execution import (
    ON_CPU,
    ON_CPU_PADDED,
    ON_CUDA,
    ON_CUDA_EAGER,
    ON_CUDA_PLAIN,
    Device,
    Execution,
)
from loratune.costs.limits import Limits
from loratune.data.table import TokenTable
from loratune.engine.paths import Paths
from loratune.model.base import BaseModel
from loratune.model.device import device_memory, parse_memory, peak_memory
from loratune.values import default_recipe

MICRO_BATCH_TOKENS: dict[Device, int] = {"cpu": 2048, "cuda": 65536}
"""At most: beyond, throughput has long stopped to grow. What is used is measured (`costs.measuring.calibrate`)."""

_UNEVEN = 1.25
"""A micro-batch may have more supervised tokens than the mean."""


def execution_of(device: Device, paths: Paths | None = None) -> Execution:
    """How the engine runs there, for the memory model; `paths` None: as it runs best."""
    if device == "cpu":
        return ON_CPU if paths is None or paths.rows.flat else ON_CPU_PADDED
    if paths is None or paths.compiled:
        return ON_CUDA
    return ON_CUDA_EAGER if paths.rows.flat and paths.low_rank.triton else ON_CUDA_PLAIN


def device_bytes(text: str | None, device: torch.device, execution: Execution) -> int:
    """All that the process may take: what the user allows, else what it holds and what the device has free."""
    if text is not None:
        return parse_memory(text)
    context = execution.runtime if device.type == "cuda" else 0  # on a GPU the context is taken already
    return int(device_memory(device)) + context


def measured_peak(device: torch.device, execution: Execution) -> int:
    """Most bytes that the process has held, counted as `device_bytes` and the estimates do."""
    return peak_memory(device) + (execution.runtime if device.type == "cuda" else 0)


def supervised_share(table: TokenTable) -> float:
    """Of the tokens of a micro-batch of these rows, those that are supervised, at most."""
    return min(1.0, _UNEVEN * float(table.supervised_counts.sum() / table.lengths.sum()))


def limits_here(
    base: BaseModel, paths: Paths, train: TokenTable, validation: TokenTable, memory: str | None = None
) -> Limits:
    """With the largest micro-batch worth trying, or what one trial of the default recipe leaves room for.

    Args:
        memory: what the user allows, such as `24GiB`; None: what the device has free.
    """
    device: Device = "cuda" if base.device.type == "cuda" else "cpu"
    execution = execution_of(device, paths)
    longest = int(max(train.lengths.max(), validation.lengths.max()))
    limits = Limits(
        model=base.profile,
        max_length=longest,
        micro_batch_tokens=longest,
        device_bytes=device_bytes(memory, base.device, execution),
        execution=execution,
        supervised=supervised_share(train),
    )
    tokens = limits.largest_micro_batch([default_recipe()], MICRO_BATCH_TOKENS[device])
    return replace(limits, micro_batch_tokens=max(tokens, longest))
