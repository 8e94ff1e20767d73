"""Seconds of waves, by hand: what a trial adds to those beside it."""

import pytest

from loratune.data.batches import total_steps
from loratune.search.procedure import Ledger, Procedure, ask
from loratune.values import (
    DataFacts,
    Pace,
    SearchContext,
    Trial,
    TrialCosts,
    TrialResult,
    Wishes,
    default_recipe,
)
from loratune.values.context import optimiser_steps
from loratune.values.plain import from_plain, to_plain

PACE = Pace(steps=((0.0, 0.01), (400.0, 0.02), (800.0, 0.06)), forward=1000.0, slots=2)
CONTEXT = SearchContext(
    data=DataFacts(rows=160, tokens=1600, supervised_tokens=1, validation_tokens=100),
    costs=TrialCosts(pace=PACE),
    wishes=Wishes(budget=2.0),
)


@pytest.mark.parametrize(
    ("tokens", "seconds"), [(0, 0.01), (200, 0.015), (400, 0.02), (600, 0.04), (800, 0.06), (1600, 0.12)]
)
def test_a_step_lies_between_the_measured_ones(tokens: float, seconds: float) -> None:
    assert PACE.step(tokens) == pytest.approx(seconds)


def test_below_a_first_point_of_some_tokens_time_is_in_proportion() -> None:
    assert Pace(steps=((100.0, 1.0),), forward=1.0, slots=1).step(25) == pytest.approx(0.25)


def test_a_wave_goes_on_with_those_that_are_left() -> None:
    # 5 steps of both (400 tokens), 5 more of the longer one (300 tokens), 50 tokens evaluated
    assert PACE.wave([(5, 100.0), (10, 300.0)], 50) == pytest.approx(5 * 0.02 + 5 * 0.0175 + 0.05)
    # three in two slots: the shortest comes after the others
    alone = 5 * PACE.step(100)
    assert PACE.wave([(5, 100.0), (5, 100.0), (10, 300.0)]) == pytest.approx(5 * 0.02 + 5 * 0.0175 + alone)
    assert PACE.wave([]) == 0
    assert from_plain(Pace, to_plain(PACE)) == PACE


def test_steps_are_counted_as_the_engine_does() -> None:
    for rows, batch, epochs in ((160, 16, 1.0), (161, 16, 2.5), (7, 16, 3.0), (2000, 16, 0.1)):
        assert optimiser_steps(rows, batch, epochs) == total_steps(rows, batch, epochs)
    assert optimiser_steps(100, 8, 2, fraction=0.25) == 2 * 4


def trial(seed: int) -> Trial:
    return Trial(hyper_parameters=default_recipe(), seed=seed)


def test_the_second_trial_of_a_wave_costs_what_it_adds() -> None:
    alone = 10 * PACE.step(160) + 0.1
    assert CONTEXT.wave_cost([trial(0)]) == pytest.approx(1.0)
    both = (10 * PACE.step(320) + 0.2) / alone
    assert CONTEXT.wave_cost([trial(0), trial(1)]) == pytest.approx(both)
    assert CONTEXT.wave_cost([trial(0)] * 4) == pytest.approx(2 * both)  # two slots
    assert CONTEXT.changed(pace=None).wave_cost([trial(0), trial(1)]) == pytest.approx(2.0)


def two_waves(ledger: Ledger) -> Procedure[float]:
    yield (trial(0), trial(1))
    yield (trial(2), trial(3), trial(4))
    return ledger.spent


def test_a_budget_pays_for_waves_and_a_resumed_search_decides_alike() -> None:
    both = CONTEXT.wave_cost([trial(0), trial(1)])
    context = CONTEXT.changed(budget=2 * both + 0.1)
    first = ask(two_waves, context, [])
    assert first == (trial(0), trial(1))
    results = [TrialResult(asked=each, trial=each, nll=1.0, cost=7.0) for each in first]  # a slow day
    assert ask(two_waves, context, results) == (trial(2), trial(3))
    assert ask(two_waves, context, results[:1]) == (trial(1),)
    third = TrialResult(asked=trial(2), trial=trial(2), nll=1.0, cost=1.0)
    assert ask(two_waves, context, [*results, third]) == (trial(3),)
