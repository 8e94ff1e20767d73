"""A search on a clock instead of a device: which trials train beside each other if results come as expected.

What a search asks for hangs on results, so its trials do not share one pack: learning rates are screened before ranks
are compared, and a step of a few small trials costs little less than one of many. Trains nothing.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, log

from loratune.run.planning import Planner
from loratune.run.queue import TrialQueue
from loratune.search.compare import NLL_METRICS
from loratune.search.space import rank_prior, usual_rate
from loratune.search.strategy import Strategy
from loratune.values import SearchContext, Stage, Trial, TrialResult

_LEVEL = 50.0
"""Loss of a good trial, in margins."""
_WIDTH = 2.0
"""Margins by which a learning rate e times too high or too low is worse."""
_SEEDS = 0.3
"""Margins between the mean and a run, above or below."""


@dataclass(kw_only=True)
class Rehearsal:
    """What each stage would take."""

    seconds: dict[Stage, float] = field(default_factory=lambda: defaultdict(float))
    """Of training; a step that trials of two stages share is shared out by their tokens."""
    runs: dict[Stage, float] = field(default_factory=lambda: defaultdict(float))
    """Full-run equivalents."""
    trials: int = 0

    def seconds_for(self, stage: Stage, runs: float) -> float | None:
        """Seconds of training of a stage that costs so many full-run equivalents; None where it did not come."""
        return self.seconds[stage] * runs / self.runs[stage] if self.runs.get(stage) else None


def rehearse(strategy: Strategy, planner: Planner) -> Rehearsal:
    """The whole search, with `expected` results, as `LocalRunner` would pack its trials."""
    found = Rehearsal()
    history: list[TrialResult] = []

    def more(done: Sequence[TrialResult], live: Sequence[Trial]) -> Sequence[Trial]:
        return strategy.ask((*history, *done), live)

    while trials := strategy.ask(history):
        queue = TrialQueue(planner, trials, more)
        _play(queue, planner, strategy.context, found)
        history += queue.results
    return found


def _play(queue: TrialQueue, planner: Planner, context: SearchContext, found: Rehearsal) -> None:
    """Until no trial of the queue is left: step by step, in strides up to the next end of a trial."""
    left: dict[str, int] = {}
    tokens: dict[str, float] = {}
    while True:
        while len(left) < queue.slots and (trial := queue.next()) is not None:
            load = planner.load(trial)
            left[trial.key], tokens[trial.key] = load.steps, load.tokens
        if not left:
            return
        stride = min(left.values())
        everything = sum(tokens.values())
        seconds = stride * planner.times.seconds(everything)
        for key, trial in queue.running.items():
            found.seconds[trial.stage] += seconds * tokens[key] / everything
            left[key] -= stride
        for key in [key for key, steps in left.items() if steps == 0]:
            trial = queue.running[key]
            del left[key], tokens[key]
            found.runs[trial.stage] += context.cost(trial)
            found.trials += 1
            queue.ended(trial, expected(trial, context))


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
    """The metrics of a loss in nats, or in points of the metric short of 100 (see `compare.loss`)."""
    if context.metric in NLL_METRICS:
        return {"nll": loss, "perplexity": exp(loss)}
    return {context.metric: 1 - loss / 100 if context.larger_is_better else loss / 100}
