"""Trials shared out over several devices: known answers, bounds that hold, and 256 devices on recorded step times."""

from itertools import product

import numpy as np
import pytest

from loratune.costs.packing import TrialLoad, plan_packs
from loratune.costs.spread import spread, spread_bound
from loratune.costs.step_time import StepTime

COMPUTE_BOUND = StepTime(points=((100.0, 1.0),), micro_batch_tokens=100.0)
"""A second for each hundred tokens."""
LAUNCHES = StepTime(points=((1.0, 1.0), (1e6, 1.0)), micro_batch_tokens=1e6)
"""A second a step, whatever is in it."""
H200 = StepTime(
    points=tuple(
        (16 * 25.4 * trials, 16 * 25.4 * trials / rate)
        for trials, rate in ((1, 31_549), (4, 95_977), (16, 217_445), (32, 283_268), (64, 339_000))
    ),
    micro_batch_tokens=65536.0,
)
"""Recorded: SmolLM2-135M at batch 16, rows of 25.4 tokens, so many trials at so many tokens/s (docs/performance.md)."""


def load(steps: int, tokens: float = 100.0, memory: int = 1) -> TrialLoad:
    return TrialLoad(steps=steps, tokens=tokens, memory=memory)


def test_halves_of_equal_trials() -> None:
    plan = spread([load(10)] * 8, devices=2, slots=4, memory=100, times=COMPUTE_BOUND)
    assert [sorted(part.order) for part in plan.parts] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert plan.seconds == pytest.approx(40.0)
    assert plan.bound == pytest.approx(40.0)


def test_long_trials_are_not_on_one_device() -> None:
    """Two of 9 and two of 1 steps: 10 seconds each, not 18 and 2."""
    plan = spread([load(9), load(9), load(1), load(1)], devices=2, slots=4, memory=100, times=COMPUTE_BOUND)
    assert [part.seconds for part in plan.parts] == pytest.approx([10.0, 10.0])


def test_where_launches_are_all_a_device_of_its_own_gains_nothing_but_costs_nothing() -> None:
    plan = spread([load(5)] * 6, devices=3, slots=8, memory=100, times=LAUNCHES)
    assert plan.seconds == pytest.approx(5.0)


def test_one_device_is_the_plan_of_one() -> None:
    loads = [load(steps, tokens) for steps, tokens in ((5, 80.0), (3, 200.0), (9, 20.0))]
    alone = plan_packs(loads, slots=2, memory=100, times=H200)
    plan = spread(loads, devices=1, slots=2, memory=100, times=H200)
    assert plan.parts == (alone,)
    assert plan.bound == alone.bound


def test_more_devices_than_trials() -> None:
    plan = spread([load(4), load(2)], devices=4, slots=2, memory=100, times=COMPUTE_BOUND)
    assert [len(part.order) for part in plan.parts] == [1, 1, 0, 0]
    assert plan.seconds == plan.bound == pytest.approx(4.0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("times", [COMPUTE_BOUND, LAUNCHES, H200], ids=["compute", "launches", "h200"])
def test_no_way_to_share_out_goes_below_the_bound(seed: int, times: StepTime) -> None:
    """All of them, each device packed by plan_packs."""
    random = np.random.default_rng(seed)
    loads = [
        load(int(random.integers(1, 30)), float(random.integers(20, 900)), int(random.integers(1, 8)))
        for _ in range(5)
    ]
    slots, memory = int(random.integers(1, 5)), 10
    bound = spread_bound(loads, devices=2, slots=slots, memory=memory, times=times)
    best = np.inf
    for sides in product((0, 1), repeat=len(loads) - 1):
        seconds = [0.0, 0.0]
        for device in (0, 1):
            share = [each for each, side in zip(loads, (0, *sides), strict=True) if side == device]
            seconds[device] = plan_packs(share, slots=slots, memory=memory, times=times).seconds
        best = min(best, max(seconds))
    assert bound <= best * (1 + 1e-9)
    found = spread(loads, devices=2, slots=slots, memory=memory, times=times).seconds
    assert best * (1 - 1e-9) <= found <= 1.5 * best


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("trials", [256, 2048])
def test_256_devices_reach_nine_tenths_of_the_bound(trials: int, seed: int) -> None:
    """Ranks, batch sizes and fractions of a search, on step times that were recorded on an H200."""
    random = np.random.default_rng(seed)
    loads = []
    for _ in range(trials):
        batch = int(random.choice([4, 8, 16, 32]))
        steps = int(2000 * float(random.choice([0.25, 0.5, 1.0])) * 16 / batch)
        loads.append(load(steps, batch * 25.4, int(random.choice([2, 8, 32, 128]))))
    plan = spread(loads, devices=256, slots=64, memory=64 * 32, times=H200)
    assert sorted(number for part in plan.parts for number in part.order) == list(range(trials))
    assert plan.bound >= 0.9 * plan.seconds
