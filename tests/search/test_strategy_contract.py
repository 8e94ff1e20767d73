"""The strategies that come with the package keep the contract that third parties are given, in a planted table."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import pytest

from loratune.errors import InputError
from loratune.search.make import STRATEGIES, make_strategy
from loratune.search.space import base_batch, other_batches
from loratune.search.strategy import Strategy
from loratune.testing.strategies import StrategyContract
from loratune.values import HyperParameters, SearchContext, Trial, TrialResult
from planted import Planted
from simulated import TableRunner


@cache
def table() -> TableRunner:
    with TemporaryDirectory() as folder:
        return TableRunner.open(Planted().write(Path(folder) / "planted.csv"), "planted")


class InTable(StrategyContract):
    """The table's values, at the full predicted cost (the table itself makes repeated cells free)."""

    name = "evidence"

    def make(self, context: SearchContext) -> Strategy:
        return make_strategy(self.name, context)

    def context(self, budget: float) -> SearchContext:
        return table().context(budget=budget).changed(seeds=0)

    def measure(self, trial: Trial, context: SearchContext) -> TrialResult:
        (result,) = table().run([trial], context)
        return replace(result, cost=context.cost(trial))


class TestEvidence(InTable):
    name = "evidence"


class TestGuide(InTable):
    name = "guide"

    def chosen(self, history: Sequence[TrialResult]) -> list[HyperParameters]:
        """The elbow of its first step is measured at a learning rate of its own, on part of the rows."""
        return [result.asked.hyper_parameters for result in history if result.asked.fraction == 1]


class TestGrid(InTable):
    name = "grid"


class TestRandom(InTable):
    name = "random"


class TestTpe(InTable):
    name = "tpe"
    budgets = (1.2, 4.0)


class TestGp(InTable):
    """A Gaussian process is fitted again for every part of a history, which must be short."""

    name = "gp"
    budgets = (1.2, 3.0)


class TestInAFormula(StrategyContract):
    """The world that third parties get by default."""

    budgets = (1.2, 5.0)

    def make(self, context: SearchContext) -> Strategy:
        return make_strategy("evidence", context)


def test_every_strategy_is_tested() -> None:
    assert {each.name for each in InTable.__subclasses__()} == set(STRATEGIES)


def test_the_contract_can_fail() -> None:
    """A strategy that asks for the same again is found out."""

    class Endless:
        def __init__(self, context: SearchContext) -> None:
            self.context = context
            self.made = make_strategy("grid", context)

        def ask(self, history: object, running: object = ()) -> tuple[Trial, ...]:
            return self.made.ask([])

    class Forgetful(StrategyContract):
        def make(self, context: SearchContext) -> Strategy:
            return cast(Any, Endless(context))

    with pytest.raises(AssertionError):
        Forgetful().test_asks_are_new_deterministic_and_within_the_budget()


def test_a_measured_noise_scale_limits_the_batch_sizes() -> None:
    context = table().context(budget=60.0).changed(batch_sizes=(), largest_batch=64, seeds=0)
    free = other_batches(context, 16)
    assert set(free) == {4, 8, 32, 64}
    assert set(other_batches(context.changed(useful_batches=(6.0, 40.0)), 16)) == {8, 32}
    assert base_batch(context) == base_batch(context.changed(useful_batches=(6.0, 40.0))) == 16
    measured = context.changed(useful_batches=(32.0, 64.0))
    assert base_batch(measured) == 32, "the ranks too are compared where the noise scale allows"
    history = InTable().play_out(make_strategy("evidence", measured))
    assert {result.asked.hyper_parameters.batch_size for result in history} == {32, 64}


def test_an_unknown_name_lists_those_that_exist() -> None:
    with pytest.raises(InputError, match="evidence, guide, grid, random, tpe, gp"):
        make_strategy("annealing", table().context())
