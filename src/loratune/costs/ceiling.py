"""A speed that no engine on a device can beat: how fast it multiplies, over the products that every token needs.

Kernels compile at their first use on a GPU, so that first steps say nothing there; a large product takes milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import torch

from loratune.values import ModelProfile

_SIDE = 4096
"""Side of the matrices; smaller ones do not fill a large GPU."""
_SLACK = 1.5
"""Larger products are up to a fifth faster (H200), and a device's clock rises and falls."""
USUAL_SHARE = 1 / 3
"""Share of `most_tokens` that packs of 0.5B to 8B models reach (28 to 65 % of the products; docs/performance.md)."""


def most_tokens(profile: ModelProfile, device: torch.device, dtype: torch.dtype) -> float:
    """Trained tokens per second that this device cannot exceed, whatever the pack.

    Forward, and backward for the inputs alone, through the layers that can be adapted; no attention, head or experts.
    """
    weights = sum(inputs * outputs for _, inputs, outputs in profile.targets)
    return _SLACK * product_rate(device, dtype) / (4.0 * weights)


def product_rate(device: torch.device, dtype: torch.dtype, side: int = _SIDE) -> float:
    """Floating-point operations per second of the fastest of a few products of square matrices."""
    left, right = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    times = [_seconds(lambda: left @ right, device) for _ in range(6)]
    return 2.0 * side**3 / min(times)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    began = perf_counter()
    work()
    _wait(device)
    return perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
