"""With how many threads a step is fastest, where other programs use the same cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_SHARED = 0.5
"""Load per core from which others count."""
_GAIN = 1.1
"""Factor by which fewer threads must be faster: measurements beside other programs are noisy."""
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def cores() -> float:
    """Cores that this process may use: those it is bound to, no more than its container's share makes."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(float(bound), quota(_QUOTA))


def quota(file: Path) -> float:
    """Cores' worth of time that a container may use; infinite where nothing limits it."""
    try:
        most, period = file.read_text(encoding="ascii").split()
        return float(most) / float(period)
    except (OSError, ValueError):  # no such file; "max" for no limit
        return float("inf")


def load_per_core() -> float:
    """Programs that ran or waited for a core in the last minute, on average, for each core; 0 where unknown."""
    try:
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    except (OSError, AttributeError):
        return 0.0


def is_shared() -> bool:
    """Whether more threads than one may get in each other's way: others work here, or there are fewer cores."""
    threads = torch.get_num_threads()
    return threads > 1 and (load_per_core() >= _SHARED or cores() < threads)


def fastest(rate: Callable[[], float]) -> int:
    """The number of threads (all, half of them or one) with which `rate` (larger is better) is largest.

    All of them unless fewer are a tenth faster. The number is restored afterwards.
    """
    most = torch.get_num_threads()
    found = {}
    for count in sorted({most, max(1, most // 2), 1}, reverse=True):
        with running(count):
            found[count] = rate()
    best = max(found, key=lambda count: found[count])
    return best if found[best] >= _GAIN * found[most] else most


@contextmanager
def running(threads: int) -> Iterator[None]:
    """Use this number of threads, and afterwards the number before; 0 changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
