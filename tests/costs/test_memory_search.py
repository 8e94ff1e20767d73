"""The peak of a whole search: of its largest pack, with what stands beside it."""

from dataclasses import replace

import numpy as np
import pytest

from llama_8b import GIB, limits, trial
from loratune.costs.execution import ON_CPU
from loratune.costs.limits import Limits
from loratune.costs.memory import (
    MemoryEstimate,
)
from loratune.costs.planner import LivePack, Planner
from loratune.costs.step_time import StepTime
from loratune.values import HyperParameters


def planner_of(subject: Limits, *, evaluated_tokens: int = 0, spread: float = 0.0) -> Planner:
    times = StepTime(points=((1000, 0.2), (16000, 0.9)), micro_batch_tokens=subject.micro_batch_tokens)
    return Planner(
        limits=subject,
        times=times,
        rows=1000,
        tokens=50_000,
        slots=12,
        evaluated_tokens=evaluated_tokens,
        spread=spread,
    )


def pack_of(recipe: HyperParameters, count: int) -> LivePack:
    return LivePack((recipe,) * count, 50.0 * count * recipe.batch_size)


def step_of(subject: Limits, pack: LivePack) -> MemoryEstimate:
    return subject.fullest(pack.trials, step_tokens=pack.tokens)


SEARCH = {"device_bytes": 140 * GIB, "micro_batch_tokens": 65536, "max_length": 100}


def test_the_peak_of_a_search_is_that_of_its_largest_pack() -> None:
    """With a step's tokens in flight; not of all trials together, and not of one alone."""
    subject = replace(limits(**SEARCH), execution=ON_CPU)
    planner = planner_of(subject)
    packs = [pack_of(trial(r, 16), count) for r, count in ((4, 4), (64, 12), (16, 1))]
    assert planner.peak_bytes(packs) == step_of(subject, packs[1]).total
    assert planner.peak_bytes(packs) == max(planner.peak_bytes([pack]) for pack in packs)
    assert planner.peak_bytes(packs[:1]) > subject.estimate(packs[0].trials[:1]).steady


def test_steps_of_uneven_rows_are_larger_than_their_mean() -> None:
    """Fewer rows vary more: log-normal lengths, the largest of 300 steps."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(3.0, 0.7, 20_000), 1, 400)
    spread = float(lengths.std() / lengths.mean())
    subject = replace(limits(**SEARCH), execution=ON_CPU)
    for rows in (16, 32, 128):
        pack = LivePack((trial(8, rows),), rows * float(lengths.mean()))
        largest = max(random.choice(lengths, rows).sum() for _ in range(300))
        expected = subject.fullest(pack.trials, step_tokens=largest).transient
        predicted = planner_of(subject, spread=spread).peak_bytes([pack])
        even = planner_of(subject).peak_bytes([pack])
        steady = step_of(subject, pack).total - step_of(subject, pack).transient
        assert predicted - steady == pytest.approx(expected, rel=0.15)
        assert predicted > even


def test_what_recorded_steps_hold_stands_beside_others_and_evaluations() -> None:
    subject = limits(**SEARCH)
    small, recorded, larger = (pack_of(trial(8, rows), 8) for rows in (2, 4, 100))
    other = pack_of(trial(32, 4), 8)
    assert recorded.tokens < subject.recorded_tokens < larger.tokens
    planner = planner_of(subject)
    kept = step_of(subject, recorded).transient
    assert planner.peak_bytes([recorded]) == step_of(subject, recorded).total
    assert planner.peak_bytes([recorded, small, recorded]) == step_of(subject, recorded).total
    # the first step of another kind is not recorded, as it compiles
    assert planner.peak_bytes([recorded, other]) == step_of(subject, other).total + kept
    assert planner.peak_bytes([recorded, larger]) >= step_of(subject, larger).total + kept
    beyond = subject.evaluating(131_072) + subject.execution.evaluation_slack
    evaluating = planner_of(subject, evaluated_tokens=131_072)
    assert evaluating.peak_bytes([recorded]) == step_of(subject, recorded).total + beyond


def test_the_peak_of_a_search_never_falls_as_steps_grow() -> None:
    """Least of all where the largest are just not recorded any more."""
    subject = limits(**SEARCH)
    for tokens in (0, 8_192, 131_072):
        planner = planner_of(subject, evaluated_tokens=tokens, spread=0.5)
        peaks = [planner.peak_bytes([pack_of(trial(8, rows), 4)]) for rows in range(1, 40)]
        assert peaks == sorted(peaks)


def test_on_a_cpu_nothing_is_recorded() -> None:
    """So the peak of packs one after the other is the largest of theirs."""
    subject = replace(limits(device_bytes=140 * GIB, max_length=100), execution=ON_CPU)
    packs = [pack_of(trial(8, rows), 8) for rows in (1, 4, 20)]
    planner = planner_of(subject)
    assert planner.peak_bytes(packs) == max(planner.peak_bytes([pack]) for pack in packs)
