"""The contract of a strategy: pure, deterministic, within its budget, resumable after any result.

class TestMine(StrategyContract):
    def make(self, context): return MyStrategy(context)
"""

from collections.abc import Callable, Sequence
from math import log
from random import Random
from typing import ClassVar

import pytest

from loratune.errors import BudgetError
from loratune.search.strategy import Strategy
from loratune.values import (
    DataFacts,
    Decision,
    HyperParameters,
    ModelFacts,
    SearchContext,
    Trial,
    TrialResult,
    TrialState,
    Wishes,
)
from loratune.values.plain import to_plain

Measure = Callable[[Trial, SearchContext], TrialResult]
ROUNDING = 1e-6


class StrategyContract:
    """Tests of one strategy, in a world whose truth is a formula; no model is trained."""

    budgets: ClassVar[Sequence[float]] = (1.2, 5.0, 20.0)
    """Full-run equivalents that it is tried with, ascending."""

    def make(self, context: SearchContext) -> Strategy:
        """A new strategy for this context."""
        raise NotImplementedError

    def context(self, budget: float) -> SearchContext:
        """What it knows."""
        return SearchContext(
            data=DataFacts(rows=10_000, tokens=1_000_000, supervised_tokens=0),
            model=ModelFacts(largest_rank=64),
            wishes=Wishes(ranks=(1, 4, 16, 64), batch_sizes=(16,), lora_alpha=16.0, budget=budget),
        )

    def measure(self, trial: Trial, context: SearchContext) -> TrialResult:
        """The result of a trial, at the cost that was predicted; here a power law in the rank, a parabola in the
        logarithm of the learning rate."""
        setting = trial.hyper_parameters
        best = 1e-3 * (setting.r / 16) ** -0.5
        nll = 0.5 + 0.04 * setting.r**-0.65 + 0.02 * log(setting.learning_rate / best) ** 2
        nll += 0.3 * (1 - trial.fraction) + 2e-4 * (trial.seed % 3)
        return TrialResult(asked=trial, trial=trial, nll=nll, metrics={"nll": nll}, cost=context.cost(trial))

    def chosen(self, history: Sequence[TrialResult]) -> list[HyperParameters]:
        """The settings that a search tried for an answer, whose values must be the user's candidates: all of them."""
        return [result.asked.hyper_parameters for result in history]

    def strategies(self) -> list[Strategy]:
        """One for each budget."""
        return [self.make(self.context(budget)) for budget in self.budgets]

    def play_out(self, strategy: Strategy, measure: Measure | None = None) -> list[TrialResult]:
        """All results, wave after wave."""
        history: list[TrialResult] = []
        for _ in range(1000):
            trials = strategy.ask(history)
            if not trials:
                return history
            history += [(measure or self.measure)(trial, strategy.context) for trial in trials]
        raise AssertionError("the strategy does not end")

    def test_asks_are_new_deterministic_and_within_the_budget(self) -> None:
        for strategy in self.strategies():
            history: list[TrialResult] = []
            while trials := strategy.ask(history):
                assert trials == strategy.ask(history)
                assert len(set(_keys(trials))) == len(trials)
                assert not set(_keys(trials)) & {result.asked.key for result in history}
                history += [self.measure(trial, strategy.context) for trial in trials]
            assert history
            if strategy.context.costs.pace is None:
                assert sum(result.cost for result in history) <= strategy.context.wishes.budget + ROUNDING

    def test_the_order_of_the_history_means_nothing(self) -> None:
        for strategy in self.strategies():
            history = self.play_out(strategy)
            shuffled = history.copy()
            Random(0).shuffle(shuffled)
            assert _comparable(strategy.decide(shuffled)) == _comparable(strategy.decide(history))
            half = history[: len(history) // 2]
            assert strategy.ask(list(reversed(half))) == strategy.ask(half)

    def test_it_resumes_from_any_part_of_the_history(self) -> None:
        """Killed after any number of results it asks for the same trials in the end, none of them twice."""
        for strategy in self.strategies():
            whole = self.play_out(strategy)
            for cut in range(0, len(whole), max(1, len(whole) // 8)):
                history = whole[:cut]
                while trials := strategy.ask(history):
                    history = history + [self.measure(trial, strategy.context) for trial in trials]
                assert sorted(r.asked.key for r in history) == sorted(r.asked.key for r in whole)
                assert _comparable(strategy.decide(history)) == _comparable(strategy.decide(whole))

    def test_beside_running_trials_it_asks_only_for_what_does_not_depend_on_them(self) -> None:
        """One trial ends at a time; what can be asked meanwhile is new, and enough in the end."""
        for strategy in self.strategies():
            whole = self.play_out(strategy)
            running, history = list(strategy.ask([])), list[TrialResult]()
            while running:
                history.append(self.measure(running.pop(0), strategy.context))
                more = strategy.ask(history, running)
                known = {*_keys(running), *(result.asked.key for result in history)}
                assert not set(_keys(more)) & known
                running += more
            assert not strategy.ask(history)
            if strategy.context.costs.pace is None:
                assert sum(result.cost for result in history) <= strategy.context.wishes.budget + ROUNDING
            assert {r.asked.key for r in history} == {r.asked.key for r in whole}
            assert _comparable(strategy.decide(history)) == _comparable(strategy.decide(whole))

    def test_it_decides_at_any_time(self) -> None:
        for strategy in self.strategies():
            whole = self.play_out(strategy)
            for cut in range(0, len(whole) + 1, max(1, len(whole) // 8)):
                decision = strategy.decide(whole[:cut])
                assert decision.hyper_parameters.r in strategy.context.wishes.ranks
                assert decision.evidence
                assert decision.settled == (not strategy.ask(whole[:cut]))
            assert strategy.decide(whole).settled

    def test_it_survives_a_history_in_which_everything_diverged(self) -> None:
        def diverge(trial: Trial, context: SearchContext) -> TrialResult:
            cost = context.cost(trial)
            return TrialResult(asked=trial, trial=trial, state=TrialState.DIVERGED, cost=cost)

        for strategy in self.strategies():
            decision = strategy.decide(self.play_out(strategy, diverge))
            assert decision.settled
            assert not any(claim.holds for claim in decision.evidence)

    def test_the_plan_fits_the_budget_and_starts_with_what_is_asked(self) -> None:
        for strategy in self.strategies():
            plan = strategy.plan()
            assert 0 < plan.cost <= strategy.context.wishes.budget + ROUNDING
            assert plan.trials == sum(stage.trials for stage in plan.stages)
            assert _keys(plan.stages[0].examples) == _keys(strategy.ask([]))

    def test_what_the_budget_dropped_is_reported(self) -> None:
        """In sentences, in the plan and in the evidence."""
        for strategy in self.strategies():
            dropped = strategy.plan().dropped
            assert all(sentence.endswith(".") for sentence in dropped)
            claims = {claim.claim for claim in strategy.decide(self.play_out(strategy)).evidence}
            assert set(dropped) <= claims

    def test_it_refuses_a_budget_too_small_for_one_trial(self) -> None:
        """With `BudgetError`, before anything is trained."""
        strategy = self.make(self.context(0.01).changed(smallest_fraction=0.5))
        with pytest.raises(BudgetError, match="does not pay for one trial"):
            strategy.plan()
        with pytest.raises(BudgetError):
            strategy.ask([])

    def test_nothing_is_larger_than_memory_allows(self) -> None:
        context = self.context(self.budgets[-1]).changed(batch_sizes=(), largest_batch=8)
        sizes = [setting.batch_size for setting in self.chosen(self.play_out(self.make(context)))]
        assert max(sizes) <= 8

    def test_the_users_candidates_are_the_candidates(self) -> None:
        rates = (2e-4, 7e-4, 2e-3)
        context = self.context(self.budgets[-1]).changed(
            ranks=(4, 16), learning_rates=rates, batch_sizes=(8, 16)
        )
        asked = self.chosen(self.play_out(self.make(context)))
        assert {setting.r for setting in asked} <= {4, 16}
        assert {setting.learning_rate for setting in asked} <= set(rates)
        assert {setting.batch_size for setting in asked} <= {8, 16}


def _keys(trials: Sequence[Trial]) -> list[str]:
    return [trial.key for trial in trials]


def _comparable(decision: Decision) -> object:
    return decision.hyper_parameters, to_plain(decision.evidence), decision.settled
