"""Simulated devices and their clock: what a search takes in seconds when its trials share a pack."""

from dataclasses import dataclass
from math import inf

from loratune.search.strategy import Strategy
from loratune.values import Pace, SearchContext, Trial, TrialResult
from loratune.values.hyperparameters import default_recipe
from play import Runner

SLOTS = 256
"""Trials in a pack, at most: memory is not what limits small models."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """Seconds of a training step by the rows of all trials in it, as measured."""

    name: str
    points: tuple[tuple[float, float], ...]
    """(rows in flight, seconds of a step), as in `Pace`; no rows may be the first."""

    def told(self, context: SearchContext) -> SearchContext:
        """The context with this device's pace, for rows as long as the context's."""
        length = context.data.tokens / context.data.rows
        steps = tuple((rows * length, seconds) for rows, seconds in self.points)
        return context.changed(pace=Pace(steps=steps, forward=inf, slots=SLOTS))


_STEPS = tuple(
    (16.0 * trials, 16 * trials * 25.4 / rate)
    for trials, rate in ((1, 31_549), (4, 95_977), (16, 217_445), (32, 283_268))
)
"""An H200, SmolLM2-135M, batch 16, rows of 25.4 tokens: tokens/s with so many trials (docs/performance.md)."""
LAUNCH_BOUND = Device(name="launch-bound", points=((0.0, _STEPS[0][1]), *_STEPS))
COMPUTE_BOUND = Device(name="compute-bound", points=((16.0, 1.0),))
"""Two CPU cores, or an 8B base: as long as its tokens need."""
DEVICES = {device.name: device for device in (LAUNCH_BOUND, COMPUTE_BOUND)}


def alone(context: SearchContext) -> float:
    """Seconds of the default recipe alone: 1 in a budget."""
    recipe = default_recipe(context.wishes.epochs, context.wishes.warmup_ratio)
    return context.seconds([Trial(hyper_parameters=recipe)])


def play_on(strategy: Strategy, runner: Runner, limit: float = inf) -> tuple[tuple[TrialResult, ...], float]:
    """Runs a strategy until it ends or the clock of its context's pace stops it; (history, seconds).

    All trials asked for train at once; each time one ends the strategy is asked again with the others running. A
    result that the table gave before costs nothing. What is unfinished at `limit` seconds is lost.
    """
    context = strategy.context
    assert context.costs.pace is not None
    history: list[TrialResult] = []
    live: list[tuple[TrialResult, float, float]] = []  # with the steps that it has left, and tokens of each
    now = 0.0
    while True:
        wanted = strategy.ask(history, [result.asked for result, _, _ in live])
        for result in runner.run(wanted, context):
            steps, tokens = context.load(result.asked) if result.cost else (0, 0.0)
            live.append((result, steps, tokens))
        if not live:
            return tuple(history), now
        ahead = min(left for _, left, _ in live)
        now += ahead * context.costs.pace.step(sum(tokens for _, _, tokens in live))
        if now > limit * (1 + 1e-9):
            return tuple(history), limit
        live = [(result, left - ahead, tokens) for result, left, tokens in live]
        history += [result for result, left, _ in live if left <= 1e-9]
        live = [each for each in live if each[1] > 1e-9]
