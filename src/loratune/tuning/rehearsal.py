"""A search on a clock instead of a device: which trials train beside each other if results come as expected.

What a search asks for hangs on results, so its trials do not share one pack: learning rates are screened before ranks
are compared, and a step of a few small trials costs little less than one of many. Trains nothing.
"""

from collections.abc import Mapping
from functools import partial

from loratune.costs.planner import Planner
from loratune.runners.clocked import ClockedRunner, ClockedStage
from loratune.search.expected import expected
from loratune.search.strategy import Strategy
from loratune.tuning.driver import play
from loratune.values import Stage

Rehearsal = Mapping[Stage, ClockedStage]
"""The stages that came."""


def rehearse(strategy: Strategy, planner: Planner) -> Rehearsal:
    """The whole search, with `expected` results, as `LocalRunner` would pack its trials."""
    runner = ClockedRunner(measure=partial(expected, context=strategy.context), planner=planner)
    play(strategy, runner)
    return runner.stages
