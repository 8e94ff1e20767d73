"""The runner of `docs/extending.md` and a strategy of somebody else's, under the contracts and in the driver."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loratune.runners.runner import Runner
from loratune.search.make import make_strategy
from loratune.search.strategy import Strategy
from loratune.testing.runners import RunnerContract
from loratune.testing.strategies import StrategyContract
from loratune.tuning.driver import play
from loratune.values import SearchContext, Trial, TrialResult, default_recipe

DOCS = Path(__file__).parents[2] / "docs" / "extending.md"


def one_by_one() -> Any:
    """The class as the page has it."""
    text = DOCS.read_text(encoding="utf-8").partition("## A runner")[2]
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code[1], names)
    return names["OneByOne"]


class World(StrategyContract):
    def make(self, context: SearchContext) -> Strategy:
        return make_strategy("random", context)


def measure(trial: Trial) -> TrialResult:
    return World().measure(trial, World().context(5.0))


class TestOneByOne(RunnerContract):
    def make_runner(self, folder: Path) -> Runner:
        runner: Runner = one_by_one()(measure)
        return runner

    def trials(self) -> Sequence[Trial]:
        return [Trial(hyper_parameters=replace(default_recipe(), r=r), seed=r) for r in (1, 4, 16)]


def test_the_driver_plays_any_strategy_on_any_runner() -> None:
    strategy = World().make(World().context(5.0))
    history = play(strategy, one_by_one()(measure))
    assert [r.asked.key for r in history] == [r.asked.key for r in World().play_out(strategy)]
    assert strategy.decide(history).settled
