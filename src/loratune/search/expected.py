"""Results as the laws predict them: what a search would run if nothing were surprising. Trains nothing."""

from collections.abc import Mapping
from math import log

from loratune.metrics import find
from loratune.search.space import rank_prior, usual_rate
from loratune.search.strategy import Strategy
from loratune.values import SearchContext, Trial, TrialResult

_LEVEL = 50.0
"""Loss of a good trial, in margins."""
_WIDTH = 2.0
"""Loss, in margins, of a learning rate that is off by a factor e."""
_SEEDS = 0.3
"""Distance of a run from the mean, in margins."""


def expected_history(strategy: Strategy) -> tuple[TrialResult, ...]:
    """All results of a whole search, each as `expected`. Raises `BudgetError` as the strategy does."""
    history: list[TrialResult] = []
    while trials := strategy.ask(history):
        history += [expected(trial, strategy.context) for trial in trials]
    return tuple(history)


def expected(trial: Trial, context: SearchContext) -> TrialResult:
    """A result as the laws predict it: best at the usual learning rate, worse below the prior's rank, noisy."""
    setting = trial.hyper_parameters
    usual = usual_rate(context, setting.r, setting.batch_size, trial.fraction)
    margins = _LEVEL + rank_prior(context).value / (2 * setting.r)
    margins += _WIDTH * log(setting.learning_rate / usual) ** 2
    margins += _SEEDS if trial.seed % 2 else -_SEEDS
    loss = margins * context.wishes.margin
    return TrialResult(
        asked=trial, trial=trial, nll=loss, metrics=_metrics(context, loss), cost=context.cost(trial)
    )


def _metrics(context: SearchContext, loss: float) -> Mapping[str, float]:
    """The metric of a loss in its unit (see `compare.loss`); losses in nats are in `nll`."""
    info = find(context.wishes.metric).info
    return {} if info.by_nll else {info.name: info.value_at(loss)}
