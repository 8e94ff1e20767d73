"""A search on a clock instead of a device: which trials train beside each other if results come as expected.

What a search asks for hangs on results, so its trials do not share one pack: learning rates are screened before ranks
are compared, and a step of a few small trials costs little less than one of many. Trains nothing.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import log

from loratune.costs.planner import LivePack, Planner
from loratune.metrics import find
from loratune.runners.queue import TrialQueue
from loratune.search.space import rank_prior, usual_rate
from loratune.search.strategy import Strategy
from loratune.values import SearchContext, Stage, Trial, TrialResult

_LEVEL = 50.0
"""Loss of a good trial, in margins."""
_WIDTH = 2.0
"""Margins by which a learning rate e times too high or too low is worse."""
_SEEDS = 0.3
"""Margins between the mean and a run, above or below."""


@dataclass(kw_only=True, slots=True)
class RehearsedStage:
    """What one stage took."""

    seconds: float = 0.0
    """Of training; a step that trials of two stages share is shared out by their tokens."""
    runs: float = 0.0
    """Full-run equivalents."""
    trials: int = 0
    widest: int = 0
    """Most trials of a pack with one of this stage in it."""
    packs: list[LivePack] = field(default_factory=list)
    """All of them."""


Rehearsal = Mapping[Stage, RehearsedStage]
"""The stages that came."""


def rehearse(strategy: Strategy, planner: Planner) -> Rehearsal:
    """The whole search, with `expected` results, as `LocalRunner` would pack its trials."""
    found: dict[Stage, RehearsedStage] = defaultdict(RehearsedStage)
    history: list[TrialResult] = []

    def more(done: Sequence[TrialResult], live: Sequence[Trial]) -> Sequence[Trial]:
        return strategy.ask((*history, *done), live)

    while trials := strategy.ask(history):
        queue = TrialQueue(planner, trials, more)
        _play(queue, planner, strategy.context, found)
        history += queue.results
    return found


def _play(
    queue: TrialQueue, planner: Planner, context: SearchContext, found: Mapping[Stage, RehearsedStage]
) -> None:
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
        pack = LivePack(tuple(trial.hyper_parameters for trial in queue.running.values()), everything)
        for name in {trial.stage for trial in queue.running.values()}:
            found[name].packs.append(pack)
        for key, trial in queue.running.items():
            stage = found[trial.stage]
            stage.seconds += seconds * tokens[key] / everything
            stage.widest = max(stage.widest, len(left))
            left[key] -= stride
        for key in [key for key, steps in left.items() if steps == 0]:
            trial = queue.running[key]
            del left[key], tokens[key]
            found[trial.stage].runs += context.cost(trial)
            found[trial.stage].trials += 1
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
    """The metric of a loss in its unit (see `compare.loss`); losses in nats are in `nll`."""
    info = find(context.metric).info
    return {} if info.by_nll else {info.name: info.value_at(loss)}
