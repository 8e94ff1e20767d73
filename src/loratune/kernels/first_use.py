"""Counts of what is made at first use and serves many steps: kernels, recordings, compiled functions; their seconds.

Of the whole process, since `taken` was called last.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Literal

from loratune.values.events import Prepared

Kind = Literal["kernels", "recordings"]
_COMPILING = ("entire_frame_compile", "entire_backward_compile")
"""PyTorch's names for what compiling takes, loading from its cache included."""

_counts: Counter[str] = Counter()
_seconds: dict[str, float] = {}
_compiled = (0, 0.0)


@contextmanager
def first_use(kind: Kind) -> Iterator[None]:
    """One more is made in this block."""
    started = perf_counter()
    try:
        yield
    finally:
        _counts[kind] += 1
        _seconds[kind] = _seconds.get(kind, 0.0) + perf_counter() - started


def count_broken_off() -> None:
    """One of the recordings came to nothing."""
    _counts["broken off"] += 1


def taken() -> Prepared | None:
    """What was made since this was last called; None for nothing."""
    global _compiled
    before, _compiled = _compiled, _compiled_so_far()
    found = Prepared(
        kernels=_counts["kernels"],
        kernel_seconds=_seconds.get("kernels", 0.0),
        recordings=_counts["recordings"],
        recording_seconds=_seconds.get("recordings", 0.0),
        broken_off=_counts["broken off"],
        compiled=_compiled[0] - before[0],
        compile_seconds=_compiled[1] - before[1],
    )
    _counts.clear()
    _seconds.clear()
    return found if found.kernels or found.recordings or found.compiled else None


def _compiled_so_far() -> tuple[int, float]:
    """Functions that PyTorch has compiled in this process, and its seconds; 0 where it does not say."""
    utils = sys.modules.get("torch._dynamo.utils")
    counters = getattr(utils, "counters", {})
    spent = getattr(utils, "cumulative_time_spent_ns", {})
    graphs = int(counters["stats"]["unique_graphs"]) if "stats" in counters else 0
    return graphs, sum(float(spent.get(name, 0.0)) for name in _COMPILING) / 1e9
