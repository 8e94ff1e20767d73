"""Packing plans: known answers, plans against exhaustive search and against the proven bound, step times."""

from itertools import permutations

import numpy as np
import pytest

from loratune.costs.packing import Admission, TrialLoad, fewest_steps, lower_bound, plan_packs
from loratune.costs.step_time import StepTime, efficient_tokens
from loratune.errors import ResourceError

GIB = 2**30
GPU = StepTime(
    points=((1024, 0.12), (2048, 0.125), (4096, 0.15), (8192, 0.22), (16384, 0.40)), micro_batch_tokens=16384
)
CPU = StepTime(points=((256, 1.4), (512, 2.6), (1024, 5.1)), micro_batch_tokens=1024)
LINEAR = StepTime(points=((100, 1.0),), micro_batch_tokens=1e9)


def load(steps: int, tokens: float = 100, memory: int = 1) -> TrialLoad:
    return TrialLoad(steps=steps, tokens=tokens, memory=memory)


def replay(
    loads: list[TrialLoad], order: tuple[int, ...], slots: int, memory: float, times: StepTime
) -> float:
    """Seconds of a plan, step by step, as the engine takes them."""
    waiting, live, seconds = list(order), {}, 0.0
    while waiting or live:
        for trial in list(waiting):
            held = sum(loads[each].memory for each in live)
            if len(live) < slots and held + loads[trial].memory <= memory:
                live[trial] = loads[trial].steps
                waiting.remove(trial)
        seconds += times.seconds(sum(loads[each].tokens for each in live))
        live = {each: left - 1 for each, left in live.items() if left > 1}
    return seconds


def test_a_plan_by_hand() -> None:
    """Longest first on two slots: 7 and 3, 5 with 4 and 2, so 11 steps; tokens decide nothing in a linear world."""
    loads = [load(2), load(7), load(3), load(5), load(4)]
    plan = plan_packs(loads, slots=2, memory=10, times=LINEAR)
    assert plan.order == (1, 3, 4, 2, 0)
    assert (plan.slots, plan.widest, plan.peak, plan.steps) == (2, 2, 2, 11)
    assert plan.seconds == pytest.approx(21.0) == plan.bound
    assert plan.gap == pytest.approx(0, abs=1e-9)


def test_memory_decides_who_trains_beside_whom() -> None:
    """Two large trials never share the memory; the small ones fill what is left beside them."""
    loads = [load(10, memory=6), load(10, memory=6), *[load(5, memory=2)] * 4]
    plan = plan_packs(loads, slots=6, memory=8, times=GPU)
    assert plan.peak <= 8
    assert plan.steps == 20 == fewest_steps(loads, slots=6, memory=8)


def test_a_balanced_second_wave_beats_a_full_first_one() -> None:
    """33 equal trials on 32 slots, launch-bound up to half of them: 17 and 16 take less than 32 and 1."""
    times = StepTime(points=((1, 1.0), (16, 1.0), (32, 2.0)), micro_batch_tokens=32)
    loads = [load(10, tokens=1)] * 33
    plan = plan_packs(loads, slots=32, memory=100, times=times)
    assert plan.widest == 17
    assert plan.seconds < 22 < 10 * (times.seconds(32) + times.seconds(1))


def test_nothing_to_plan_and_what_does_not_fit() -> None:
    empty = plan_packs([], slots=4, memory=1, times=GPU)
    assert (empty.seconds, empty.bound, empty.gap, empty.order) == (0.0, 0.0, 0.0, ())
    with pytest.raises(ResourceError, match=r"takes 3.00 GiB .* 2.00 GiB are left"):
        plan_packs([load(1, memory=3 * GIB)], slots=4, memory=2 * GIB, times=GPU)
    with pytest.raises(ResourceError, match="fit in memory alone"):
        plan_packs([load(1)], slots=0, memory=2, times=GPU)


@pytest.mark.parametrize("seed", range(15))
def test_the_bound_is_below_and_the_plan_near_the_best_of_all_orders(seed: int) -> None:
    random = np.random.default_rng(seed)
    loads = [
        load(int(random.integers(1, 12)), float(random.integers(50, 4000)), int(random.integers(1, 9)))
        for _ in range(5)
    ]
    slots, memory = int(random.integers(1, 5)), 10
    best = min(
        replay(loads, order, count, memory, GPU)
        for order in permutations(range(5))
        for count in range(1, slots + 1)
    )
    plan = plan_packs(loads, slots=slots, memory=memory, times=GPU)
    assert plan.bound <= best * (1 + 1e-9)
    assert plan.seconds == pytest.approx(replay(loads, plan.order, plan.slots, memory, GPU))
    assert plan.seconds <= 1.03 * best


def case(random: np.random.Generator) -> tuple[list[TrialLoad], int, float]:
    """A study: batches 4…64, fractions, epochs, ranks 1…128 of a 1B model, up to 400 trials."""
    count = int(random.integers(1, 400)) if random.random() < 0.7 else int(random.integers(1, 20))
    length, rows = random.choice([24, 100, 190]), int(random.choice([500, 2000, 10_000]))
    loads = []
    for _ in range(count):
        batch, fraction = int(random.choice([4, 8, 16, 32, 64])), random.choice([0.1, 0.25, 0.5, 1.0])
        steps = max(1, int(-(-rows * fraction // batch) * random.choice([1, 2, 3])))
        rank = int(random.choice([1, 2, 4, 8, 16, 32, 64, 128]))
        loads.append(load(steps, batch * length, rank * 40_000_000))
    return loads, int(random.choice([4, 8, 32, 64])), float(random.choice([6e9, 20e9, 50e9]))


def test_generated_studies_end_within_ten_per_cent_of_the_bound() -> None:
    random = np.random.default_rng(1)
    gaps = []
    for i in range(24):
        loads, slots, memory = case(random)
        plan = plan_packs(loads, slots=slots, memory=memory, times=(GPU, CPU)[i % 2])
        assert plan.widest <= slots
        assert plan.peak <= memory
        assert sorted(plan.order) == list(range(len(loads)))
        gaps.append(plan.gap)
    assert min(gaps) >= -1e-9
    assert np.mean(gaps) < 0.03
    assert max(gaps) <= 0.10


def test_the_same_trials_give_the_same_plan() -> None:
    loads, slots, memory = case(np.random.default_rng(7))
    first = plan_packs(loads, slots=slots, memory=memory, times=GPU)
    assert first == plan_packs(loads, slots=slots, memory=memory, times=GPU)


def test_fewest_steps_by_hand() -> None:
    def fewest(*loads: TrialLoad, slots: int = 64, memory: float = 10) -> int:
        return fewest_steps(loads, slots=slots, memory=memory)

    assert fewest(load(9), load(4)) == 9  # the longest
    assert fewest(*[load(5)] * 33, slots=32, memory=100) == 10  # two of them share a slot
    assert fewest(load(4, memory=6), load(5, memory=7)) == 9  # too large for each other
    assert fewest(*[load(6, memory=4)] * 5) == 18  # two at once: three waves
    assert fewest(load(4, memory=8), load(7, memory=3)) == 11  # the small one fits beside no large one
    assert fewest(*[load(10, memory=2)] * 10) == 20  # the area
    # any three fit, not all four: two of them never meet
    four = load(64, memory=80), load(64, memory=12), load(96, memory=5), load(63, memory=5)
    assert fewest(*four, memory=100) == 127
    assert fewest(*four, memory=102) == 96


@pytest.mark.parametrize("seed", range(10))
def test_no_schedule_of_few_trials_takes_fewer_steps(seed: int) -> None:
    """Each placed, in some order, as early as it fits: among these is one of the shortest."""
    random = np.random.default_rng(seed)
    loads = [load(int(random.integers(1, 9)), memory=int(random.integers(1, 8))) for _ in range(5)]
    slots, memory = int(random.integers(2, 5)), 10

    def steps_of(order: tuple[int, ...]) -> int:
        used = np.zeros((sum(each.steps for each in loads), 2))
        for trial in order:
            own = np.array([loads[trial].memory, 1])
            starts = range(len(used) - loads[trial].steps + 1)
            fits = (used + own <= (memory, slots)).all(1)
            start = next(at for at in starts if fits[at : at + loads[trial].steps].all())
            used[start : start + loads[trial].steps] += own
        return int(used.any(1).sum())

    assert fewest_steps(loads, slots=slots, memory=memory) <= min(map(steps_of, permutations(range(5))))


def test_admission_takes_the_first_that_fits() -> None:
    admission = Admission([6, 5, 4, 3], (0, 1, 2, 3), slots=2, room=10)
    assert [admission.next(), admission.next(), admission.next()] == [0, 2, None]
    admission.ended(0)
    assert [admission.next(), admission.next()] == [1, None]
    admission.ended(2)
    admission.ended(1)
    assert [admission.next(), admission.next()] == [3, None]


def test_what_asks_for_more_than_the_room_runs_alone() -> None:
    admission = Admission([30, 5, 4], (0, 1, 2), slots=3, room=10)
    assert [admission.next(), admission.next()] == [0, None]
    admission.ended(0)
    assert [admission.next(), admission.next(), admission.next()] == [1, 2, None]
    admission.add([40])
    assert admission.next() is None
    admission.ended(1)
    admission.ended(2)
    assert admission.next() == 3


def test_trials_that_leave_less_room_for_all() -> None:
    """They need more within a step; what is live stays."""
    admission = Admission([5, 4], (0, 1), slots=9, room=10)
    assert [admission.next(), admission.next()] == [0, 1]
    admission.add([2, 1], room=8)
    assert admission.next() is None
    admission.ended(1)
    assert [admission.next(), admission.next()] == [2, 3]


def test_step_times_launch_first_and_then_grow() -> None:
    times = StepTime(points=((100, 1.0), (200, 1.0), (400, 2.0)), micro_batch_tokens=400)
    assert times.launch == pytest.approx(1.0)
    assert [times.seconds(n) for n in (0, 50, 200, 300, 400, 800)] == pytest.approx([0, 1, 1, 1.5, 2, 4])
    assert times.seconds(500) == pytest.approx(2 * times.seconds(250))
    assert times.best_rate == pytest.approx(200.0)
    alone = StepTime(points=((100, 2.0),), micro_batch_tokens=100)
    assert [alone.seconds(n) for n in (10, 100, 250)] == pytest.approx([0.2, 2.0, 5.0])


@pytest.mark.parametrize("seed", range(10))
def test_step_times_of_noisy_points_are_convex_and_no_step_beats_the_least_rate(seed: int) -> None:
    random = np.random.default_rng(seed)
    tokens = np.sort(random.choice(5000, 5, replace=False)) + 50
    seconds = (0.1 + np.maximum(0.2, tokens / 8000)) * random.uniform(0.9, 1.1, 5)
    times = StepTime(
        points=tuple(zip(tokens.tolist(), seconds.tolist(), strict=True)),
        micro_batch_tokens=float(tokens[-1]),
    )
    assert [times.seconds(n) for n in tokens] == pytest.approx(seconds.tolist(), rel=0.15)
    at = np.linspace(1, 4 * tokens[-1], 500)
    found = np.array([times.seconds(n) for n in at])
    inside = np.diff(found[at <= tokens[-1]])
    assert (inside >= -1e-12).all()
    assert (np.diff(inside) >= -1e-9).all()
    for intercept in times.intercepts:
        rates = (found - intercept) / at
        for i in range(0, len(at), 25):
            least = times.least_rate(at[i], intercept)
            assert 0 <= least <= max(0.0, rates[i:].min()) + 1e-12


def test_the_bound_grows_with_less_memory_and_fewer_slots() -> None:
    loads = case(np.random.default_rng(3))[0]
    bounds = [lower_bound(loads, slots=s, memory=m, times=GPU) for s, m in ((64, 5e10), (8, 5e10), (8, 6e9))]
    assert bounds == sorted(bounds)


def test_the_smallest_micro_batch_that_is_nearly_as_fast_as_the_best() -> None:
    points = [(1000, 1.0), (2000, 1.2), (4000, 2.0), (8000, 3.9)]  # 1000, 1667, 2000, 2051 tokens/s
    assert efficient_tokens(points, allowed=8000) == 4000
    assert efficient_tokens(points, allowed=8000, within=0.01) == 8000
    assert efficient_tokens(points, allowed=3000) == 2000
    assert efficient_tokens(points, allowed=500) == 500
