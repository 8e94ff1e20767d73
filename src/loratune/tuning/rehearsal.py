"""A search on a clock instead of a device: which trials train beside each other if results come as expected.

What a search asks for hangs on results, so its trials do not share one pack: learning rates are screened before ranks
are compared, and a step of a few small trials costs little less than one of many. Trains nothing.
"""

from collections.abc import Mapping
from functools import partial
from math import log

from loratune.costs.planner import Planner
from loratune.metrics import find
from loratune.runners.clocked import ClockedRunner, ClockedStage
from loratune.search.space import rank_prior, usual_rate
from loratune.search.strategy import Strategy
from loratune.tuning.driver import play
from loratune.values import SearchContext, Stage, Trial, TrialResult

_LEVEL = 50.0
"""Loss of a good trial, in margins."""
_WIDTH = 2.0
"""Margins by which a learning rate e times too high or too low is worse."""
_SEEDS = 0.3
"""Margins between the mean and a run, above or below."""


Rehearsal = Mapping[Stage, ClockedStage]
"""The stages that came."""


def rehearse(strategy: Strategy, planner: Planner) -> Rehearsal:
    """The whole search, with `expected` results, as `LocalRunner` would pack its trials."""
    runner = ClockedRunner(measure=partial(expected, context=strategy.context), planner=planner)
    play(strategy, runner)
    return runner.stages


def expected(trial: Trial, context: SearchContext) -> TrialResult:
    """A result as the laws expect it: best at the usual learning rate, worse below the prior's rank, some noise."""
    setting = trial.hyper_parameters
    usual = usual_rate(context, setting.r, setting.batch_size, trial.fraction)
    margins = _LEVEL + rank_prior(context).value / (2 * setting.r)
    margins += _WIDTH * log(setting.learning_rate / usual) ** 2
    margins += _SEEDS if trial.seed % 2 else -_SEEDS
    loss = margins * context.margin
    return TrialResult(
        asked=trial, trial=trial, nll=loss, metrics=_metrics(context, loss), cost=context.cost(trial)
    )


def _metrics(context: SearchContext, loss: float) -> Mapping[str, float]:
    """The metric of a loss in its unit (see `compare.loss`); losses in nats are in `nll`."""
    info = find(context.metric).info
    return {} if info.by_nll else {info.name: info.value_at(loss)}
