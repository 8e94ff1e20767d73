"""What every strategy must keep, whatever it searches for."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest

from loratune.errors import BudgetError, InputError
from loratune.runners.simulated import TableRunner
from loratune.search.make import STRATEGIES, make_strategy
from loratune.search.space import base_batch, other_batches
from loratune.search.strategy import Strategy
from loratune.values import Decision, SearchContext, Trial, TrialResult, TrialState
from planted import Planted

BUDGETS = (1.2, 5.0, 20.0)


@cache
def table() -> TableRunner:
    with TemporaryDirectory() as folder:
        return TableRunner.open(Planted().write(Path(folder) / "planted.csv"), "planted")


def measure(trial: Trial, context: SearchContext) -> TrialResult:
    """The table's value at the full predicted cost (the table itself makes repeated cells free)."""
    (result,) = table().run([trial], context)
    return replace(result, cost=context.cost(trial))


def diverge(trial: Trial, context: SearchContext) -> TrialResult:
    return TrialResult(asked=trial, trial=trial, state=TrialState.DIVERGED, cost=context.cost(trial))


def play_out(strategy: Strategy, run: object = measure) -> list[TrialResult]:
    history: list[TrialResult] = []
    for _ in range(200):
        trials = strategy.ask(history)
        if not trials:
            return history
        history += [run(trial, strategy.context) for trial in trials]  # type: ignore[operator]
    raise AssertionError("the strategy does not end")


def told(decision: Decision) -> object:
    return decision.hyper_parameters, [claim.to_dict() for claim in decision.evidence], decision.settled


def keys(trials: Sequence[Trial]) -> list[str]:
    return [trial.key for trial in trials]


@pytest.fixture(params=sorted(set(STRATEGIES) - {"gp"}))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


CASES = [
    (name, budget) for name in sorted(STRATEGIES) for budget in BUDGETS if (name, budget) != ("gp", 20.0)
]
"""Without the slow one: a Gaussian process fitted again for every part of a long history."""


@pytest.fixture(params=CASES, ids=str)
def strategy(request: pytest.FixtureRequest) -> Strategy:
    name, budget = request.param
    return make_strategy(name, replace(table().context(budget=budget), seeds=0))


def test_asks_are_new_deterministic_and_within_the_budget(strategy: Strategy) -> None:
    history: list[TrialResult] = []
    while trials := strategy.ask(history):
        assert trials == strategy.ask(history)
        assert len(set(keys(trials))) == len(trials)
        assert not set(keys(trials)) & {result.asked.key for result in history}
        history += [measure(trial, strategy.context) for trial in trials]
    assert history
    assert sum(result.cost for result in history) <= strategy.context.budget + 1e-6


def test_order_of_the_history_means_nothing(strategy: Strategy) -> None:
    history = play_out(strategy)
    shuffled = history.copy()
    Random(0).shuffle(shuffled)
    assert told(strategy.decide(shuffled)) == told(strategy.decide(history))
    half = history[: len(history) // 2]
    assert strategy.ask(list(reversed(half))) == strategy.ask(half)


def test_resumes_from_any_part_of_the_history(strategy: Strategy) -> None:
    """Killed after any number of results it asks for the same trials in the end, none of them twice."""
    whole = play_out(strategy)
    for cut in range(0, len(whole), 3):
        history = whole[:cut]
        while trials := strategy.ask(history):
            history = history + [measure(trial, strategy.context) for trial in trials]
        assert sorted(r.asked.key for r in history) == sorted(r.asked.key for r in whole)
        assert told(strategy.decide(history)) == told(strategy.decide(whole))


def test_with_trials_running_it_asks_only_for_what_does_not_depend_on_them(strategy: Strategy) -> None:
    """One trial ends at a time; what can be asked meanwhile is new, within the budget, and enough in the end."""
    whole = play_out(strategy)
    running, history = list(strategy.ask([])), list[TrialResult]()
    while running:
        history.append(measure(running.pop(0), strategy.context))
        more = strategy.ask(history, running)
        assert not set(keys(more)) & {*keys(running), *(result.asked.key for result in history)}
        running += more
    assert not strategy.ask(history)
    assert sum(result.cost for result in history) <= strategy.context.budget + 1e-6
    assert {r.asked.key for r in history} == {r.asked.key for r in whole}
    assert told(strategy.decide(history)) == told(strategy.decide(whole))


def test_decides_at_any_time(strategy: Strategy) -> None:
    whole = play_out(strategy)
    for cut in range(len(whole) + 1):
        decision = strategy.decide(whole[:cut])
        assert decision.hyper_parameters.r in strategy.context.ranks
        assert decision.settled == (not strategy.ask(whole[:cut]))
        assert decision.evidence
    assert strategy.decide(whole).settled


def test_survives_a_history_in_which_everything_diverged(strategy: Strategy) -> None:
    history = play_out(strategy, diverge)
    decision = strategy.decide(history)
    assert decision.settled
    assert not any(claim.holds for claim in decision.evidence)


def test_plan_fits_the_budget_and_starts_with_what_is_asked(strategy: Strategy) -> None:
    plan = strategy.plan()
    assert 0 < plan.cost <= strategy.context.budget + 1e-6
    assert plan.trials == sum(stage.trials for stage in plan.stages)
    assert keys(plan.stages[0].examples) == keys(strategy.ask([]))
    assert all(sentence.endswith(".") for sentence in plan.dropped)


def test_evidence_names_what_the_budget_dropped(strategy: Strategy) -> None:
    claims = [claim.claim for claim in strategy.decide(play_out(strategy)).evidence]
    assert set(strategy.plan().dropped) <= set(claims)


def test_refuses_a_budget_too_small_for_one_trial(name: str) -> None:
    strategy = make_strategy(name, replace(table().context(budget=0.01), smallest_fraction=0.5))
    with pytest.raises(BudgetError, match="does not pay for one trial"):
        strategy.plan()
    with pytest.raises(BudgetError):
        strategy.ask([])


def test_users_candidates_are_the_candidates(name: str) -> None:
    rates = (2e-4, 7e-4, 2e-3)
    context = replace(
        table().context(budget=30.0), ranks=(4, 16), learning_rates=rates, batch_sizes=(8, 16), seeds=0
    )
    history = play_out(make_strategy(name, context))
    later = [r.asked.hyper_parameters for r in history if name != "guide" or r.asked.fraction == 1]
    assert {setting.r for setting in later} <= {4, 16}
    assert {setting.learning_rate for setting in later} <= set(rates)
    assert {setting.batch_size for setting in later} <= {8, 16}


def test_nothing_larger_than_memory_allows(name: str) -> None:
    context = replace(table().context(budget=30.0), batch_sizes=(), largest_batch=8, seeds=0)
    history = play_out(make_strategy(name, context))
    assert max(r.asked.hyper_parameters.batch_size for r in history) <= 8


def test_a_measured_noise_scale_limits_the_batch_sizes() -> None:
    context = replace(table().context(budget=60.0), batch_sizes=(), largest_batch=64, seeds=0)
    free = other_batches(context, 16)
    assert set(free) == {4, 8, 32, 64}
    assert set(other_batches(replace(context, useful_batches=(6.0, 40.0)), 16)) == {8, 32}
    assert base_batch(context) == base_batch(replace(context, useful_batches=(6.0, 40.0))) == 16
    measured = replace(context, useful_batches=(32.0, 64.0))
    assert base_batch(measured) == 32, "the ranks too are compared where the noise scale allows"
    sizes = {
        result.asked.hyper_parameters.batch_size for result in play_out(make_strategy("evidence", measured))
    }
    assert sizes == {32, 64}


def test_an_unknown_name_lists_those_that_exist() -> None:
    with pytest.raises(InputError, match="evidence, guide, grid, random, tpe, gp"):
        make_strategy("annealing", table().context())
