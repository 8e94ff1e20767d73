"""How trials share packs: which starts when, and when the last one ends. Knows costs, not trials.

A pack is a number of slots that all advance together: a slot freed by a trial is refilled at once. So a
plan is list scheduling on equal machines, and longest-first is never more than 4/3 - 1/(3·slots) of the
best possible (Graham 1969).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace

from loratune.errors import ResourceError


@dataclass(frozen=True, kw_only=True, slots=True)
class PackPlan:
    """Who trains where."""

    slots: tuple[tuple[int, ...], ...]
    """Per slot the numbers of its trials, in the order in which they train."""
    order: tuple[int, ...]
    """Numbers of the trials in the order in which they start."""
    makespan: float
    """Cost of the busiest slot, in the unit of the costs (tokens): the length of the pack."""
    busy: float
    """Share of all slots' time until then that is spent on trials, in (0, 1]; 1 for no trials."""


def plan_pack(costs: Sequence[float], slots: int) -> PackPlan:
    """Longest first: each trial goes to the slot that is free first (ties: the lower number).

    Args:
        costs: cost of each trial, such as tokens to train.
        slots: trials that fit beside each other, at least 1; `ResourceError` otherwise.
    """
    if slots < 1:
        raise ResourceError(
            f"a pack needs at least one slot, got {slots}: not even one trial fits in memory; "
            f"use a smaller model, a lower rank or shorter rows."
        )
    order = tuple(sorted(range(len(costs)), key=lambda i: (-costs[i], i)))
    used = min(slots, max(1, len(costs)))
    assigned: list[list[int]] = [[] for _ in range(used)]
    free = [(0.0, slot) for slot in range(used)]
    heapify(free)
    for trial in order:
        ends, slot = free[0]
        assigned[slot].append(trial)
        heapreplace(free, (ends + costs[trial], slot))
    makespan = max(ends for ends, _ in free)
    total = makespan * used
    return PackPlan(
        slots=tuple(tuple(trials) for trials in assigned),
        order=order,
        makespan=makespan,
        busy=sum(costs) / total if total else 1.0,
    )
