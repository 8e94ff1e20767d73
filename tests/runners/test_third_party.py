"""The runner and the strategy of `docs/extending.md`, under their contracts and in the driver."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loratune.runners.runner import Runner
from loratune.search.strategy import Strategy
from loratune.testing.runners import RunnerContract
from loratune.testing.strategies import StrategyContract
from loratune.tuning.driver import play
from loratune.values import SearchContext, Trial, TrialResult, default_recipe

DOCS = Path(__file__).parents[2] / "docs" / "extending.md"


def of_the_page(heading: str, name: str) -> Any:
    """A class as the page has it, in the first example under a heading."""
    text = DOCS.read_text(encoding="utf-8").partition(f"## {heading}\n")[2]
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code[1], names)
    return names[name]


class TestEveryRank(StrategyContract):
    def make(self, context: SearchContext) -> Strategy:
        strategy: Strategy = of_the_page("A strategy", "EveryRank")(context)
        return strategy


def measure(trial: Trial) -> TrialResult:
    return TestEveryRank().measure(trial, TestEveryRank().context(5.0))


class TestOneByOne(RunnerContract):
    def make_runner(self, folder: Path) -> Runner:
        runner: Runner = of_the_page("A runner", "OneByOne")(measure)
        return runner

    def trials(self) -> Sequence[Trial]:
        return [Trial(hyper_parameters=replace(default_recipe(), r=r), seed=r) for r in (1, 4, 16)]


def test_the_driver_plays_any_strategy_on_any_runner() -> None:
    strategy = TestEveryRank().make(TestEveryRank().context(5.0))
    history = play(strategy, of_the_page("A runner", "OneByOne")(measure))
    assert [r.asked.key for r in history] == [r.asked.key for r in TestEveryRank().play_out(strategy)]
    assert strategy.decide(history).settled
