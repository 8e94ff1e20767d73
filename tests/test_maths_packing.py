"""Packs planned longest first: known answers, the textbook bound, and sizes that stay fast."""

from itertools import product

import numpy as np
import pytest

from loratune.errors import ResourceError
from loratune.maths.packing import plan_pack


def test_a_plan_by_hand() -> None:
    plan = plan_pack([2.0, 7.0, 3.0, 5.0, 4.0], slots=2)
    assert plan.order == (1, 3, 4, 2, 0)
    assert plan.slots == ((1, 2), (3, 4, 0))
    assert plan.makespan == 11.0
    assert plan.busy == pytest.approx(21 / 22)


def test_equal_costs_start_in_the_order_given() -> None:
    plan = plan_pack([1.0] * 5, slots=3)
    assert plan.order == (0, 1, 2, 3, 4)
    assert plan.slots == ((0, 3), (1, 4), (2,))
    assert plan.makespan == 2.0


def test_fewer_trials_than_slots_and_none_at_all() -> None:
    assert plan_pack([3.0], slots=8) == plan_pack([3.0], slots=1)
    assert plan_pack([], slots=4).makespan == 0.0
    assert plan_pack([], slots=4).busy == 1.0
    with pytest.raises(ResourceError, match="at least one slot, got 0"):
        plan_pack([1.0], slots=0)


@pytest.mark.parametrize("seed", range(20))
def test_longest_first_keeps_grahams_bound(seed: int) -> None:
    costs = np.random.default_rng(seed).integers(1, 30, size=7).astype(float)
    slots = 3
    best = min(
        max(sum(cost for cost, s in zip(costs, choice, strict=True) if s == slot) for slot in range(slots))
        for choice in product(range(slots), repeat=len(costs))
    )
    plan = plan_pack(list(costs), slots)
    assert best <= plan.makespan <= (4 / 3 - 1 / (3 * slots)) * best
    assert sorted(trial for slot in plan.slots for trial in slot) == list(range(7))


def test_a_thousand_trials_leave_slots_idle_for_less_than_a_per_cent() -> None:
    costs = list(np.random.default_rng(0).lognormal(10, 1, size=1000))
    assert plan_pack(costs, 32).busy > 0.99
