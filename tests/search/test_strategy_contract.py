"""The strategies that come with the package keep the contract that third parties are given."""

from typing import Any, cast

import pytest

from loratune.search.make import make_strategy
from loratune.search.strategy import Strategy
from loratune.testing.strategies import StrategyContract
from loratune.values import SearchContext, Trial


class TestGrid(StrategyContract):
    def make(self, context: SearchContext) -> Strategy:
        return make_strategy("grid", context)


class TestRandom(StrategyContract):
    def make(self, context: SearchContext) -> Strategy:
        return make_strategy("random", context)


class TestEvidence(StrategyContract):
    def make(self, context: SearchContext) -> Strategy:
        return make_strategy("evidence", context)


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
