"""Attention that is not computed again: what it gave while a layer ran first, for when the layer runs once more.

A layer whose activations are not kept runs a second time in the backward pass. Its attention takes time that grows with
the square of a row's length and its output is small, so the output is kept. Knows no kernel and no layer.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

Found = tuple[torch.Tensor, torch.Tensor]
"""Output of an attention, and what its backward pass needs beside it."""

_keeping: deque[Found] | None = None
_repeating: deque[Found] | None = None


@contextmanager
def keeping() -> Iterator[deque[Found]]:
    """What attention gives inside this block is added to the queue."""
    global _keeping
    _keeping = deque()
    try:
        yield _keeping
    finally:
        _keeping = None


@contextmanager
def repeating(found: deque[Found]) -> Iterator[None]:
    """Attention inside this block gives what is in the queue, in that order."""
    global _repeating
    _repeating = found
    try:
        yield
    finally:
        _repeating = None


def repeated() -> Found | None:
    """What attention is to give without being computed, if anything."""
    return _repeating.popleft() if _repeating else None


def keep(output: torch.Tensor, beside: torch.Tensor) -> None:
    """Keep an attention just computed, as other tensors of the same memory: autograd ties these two to a history."""
    if _keeping is not None:
        _keeping.append((output.detach(), beside.detach()))
