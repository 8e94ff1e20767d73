"""What fits on a device by the memory model: the last rank, batch, pack and micro-batch, and plans."""

from dataclasses import replace

import numpy as np
import pytest

from llama_8b import GIB, limits, trial
from loratune.costs.packing import Admission
from loratune.costs.planner import Planner
from loratune.costs.step_time import StepTime
from loratune.values import Trial


def test_limits_are_the_last_values_that_fit() -> None:
    subject, recipe = limits(), trial(16, 8)
    row_by_row = replace(subject, micro_batch_tokens=512)
    trials = subject.largest_pack(recipe, 256)
    assert trials > 1
    assert all(row_by_row.fits([recipe] * count) == (count <= trials) for count in range(1, trials + 20))
    assert subject.largest_pack(recipe, 2) == 2
    rank = subject.largest_rank(recipe, trials=4)
    assert 16 < rank < 1024
    fitting = [row_by_row.fits([replace(recipe, r=r)] * 4) for r in range(1, 1025)]
    assert fitting == [r <= rank for r in range(1, 1025)]
    tokens = subject.largest_micro_batch([recipe] * 4)
    crowd = [replace(recipe, batch_size=1000)] * 4
    assert replace(subject, micro_batch_tokens=tokens).fits(crowd)
    assert not replace(subject, micro_batch_tokens=tokens + 512).fits(crowd)
    batch = subject.largest_batch(recipe)
    whole = replace(subject, micro_batch_tokens=2**30)
    assert whole.fits([replace(recipe, batch_size=batch)])
    assert not whole.fits([replace(recipe, batch_size=batch + 1)])


@pytest.mark.parametrize("device", [40, 60, 80, 140])
def test_the_largest_micro_batch_fits_where_a_step_fills_it(device: int) -> None:
    """Longer steps are cut into equal parts, which are smaller than the largest allowed."""
    subject, recipe = limits(device_bytes=device * GIB), trial(16, 8)
    tokens = subject.largest_micro_batch([recipe])
    full = replace(recipe, batch_size=tokens // 512)
    assert replace(subject, micro_batch_tokens=tokens).fits([full])
    more = replace(recipe, batch_size=tokens // 512 + 1)
    assert not replace(subject, micro_batch_tokens=tokens + 512).fits([more])


def test_what_adapters_may_take_is_what_is_left() -> None:
    """Trials whose adapters fill the room fit together; with one more they do not."""
    subject, recipe = limits(), trial(16, 8)
    each = subject.adapter_bytes(recipe)
    count = subject.room([recipe] * 64) // each
    assert subject.fits([recipe] * count)
    assert not subject.fits([recipe] * (count + 1))


@pytest.mark.parametrize(("device", "micro_batch", "rank", "batch"), [(80, 8192, 64, 4), (40, 12288, 16, 8)])
def test_what_is_left_of_a_pack_fits_too(device: int, micro_batch: int, rank: int, batch: int) -> None:
    """Fewer rows may be in one micro-batch that is larger than each of two."""
    subject = limits(device_bytes=device * GIB, micro_batch_tokens=micro_batch, max_length=128)
    recipe = trial(rank, batch)
    for trials in range(1, 40):
        together = min(trials, subject.room([recipe] * trials) // subject.adapter_bytes(recipe))
        for left in range(1, together + 1):
            assert subject.estimate([recipe] * left).fits(subject.device_bytes)


@pytest.mark.parametrize("seed", range(8))
def test_plans_fit_by_the_model_that_made_them(seed: int) -> None:
    """Mixed trials on devices that hold the largest just so; it runs alone, and the others no fuller than they fit."""
    random = np.random.default_rng(seed)
    packs = [trial(int(random.choice([4, 16, 64, 128])), int(random.choice([1, 4, 16]))) for _ in range(12)]
    tight = limits(device_bytes=1, micro_batch_tokens=8192, max_length=128)
    alone = max(tight.fullest([each]).total for each in packs)
    subject = replace(tight, device_bytes=round(alone * random.uniform(1.0, 1.3)))
    times = StepTime(points=((1000, 0.2), (8000, 0.6)), micro_batch_tokens=8192)
    planner = Planner(limits=subject, times=times, rows=500, tokens=500 * 60, slots=8)
    (plan,) = planner.plan([Trial(hyper_parameters=each, seed=i) for i, each in enumerate(packs)]).parts
    memory = [subject.adapter_bytes(each) for each in packs]
    admission = Admission(memory, plan.order, slots=plan.slots, room=plan.memory)
    live: list[int] = []
    while not admission.empty or live:
        while (number := admission.next()) is not None:
            live.append(number)
        together = subject.estimate([packs[number] for number in live])
        assert len(live) == 1 or together.fits(subject.device_bytes)
        admission.ended(live.pop(int(random.integers(len(live)))))


def test_nothing_fits_on_a_small_card_and_ranks_stop_at_the_layers() -> None:
    tiny = limits(device_bytes=8 * GIB)
    assert (
        tiny.largest_pack(trial(16), 9) == tiny.largest_rank(trial(16)) == tiny.largest_batch(trial(16)) == 0
    )
    assert replace(tiny, device_bytes=4000 * GIB).largest_rank(trial(16)) == 1024
