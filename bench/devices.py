"""Simulated devices and their clock: what a search takes in seconds when its trials share a pack.

Step times are measured ones (`bench/results/throughput.csv`, docs/performance.md); a device knows rows in flight, not
models.
"""

from dataclasses import dataclass
from math import ceil, inf

import numpy as np

from loratune.runners.simulated import TableRunner
from loratune.search.space import base_batch
from loratune.search.strategy import Strategy
from loratune.values import SearchContext, Trial, TrialResult

MOST_RUNS = 256
"""In one wave."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """Seconds of a training step by the rows of all trials in it: straight between the measured points."""

    name: str
    points: tuple[tuple[float, float], ...]
    """(rows in flight, seconds of a step), ascending; beyond the last at its throughput, below the first its seconds
    where the device is bound by launches."""
    launches: bool = True
    """Whether a step of fewer rows takes as long as the first point's; else time is proportional to rows."""

    def step(self, rows: float) -> float:
        """Seconds of one optimiser step with so many rows in flight."""
        counts, seconds = np.array(self.points).T
        if rows > counts[-1] or (rows < counts[0] and not self.launches):
            nearest = -1 if rows > counts[-1] else 0
            return float(seconds[nearest] * rows / counts[nearest])
        return float(np.interp(rows, counts, seconds))

    def alone(self, context: SearchContext) -> float:
        """Seconds of one run on all rows with nothing beside it: 1 in a budget of seconds."""
        batch = base_batch(context)
        return ceil(context.rows * context.epochs / batch) * self.step(batch)

    def runs(self, context: SearchContext, budget: float, width: float = inf) -> int:
        """How many full runs, at most `width` of them at once, end within `budget` times the seconds of one alone."""
        batch, count = base_batch(context), 0
        left = budget * self.step(batch) * (1 + 1e-9)
        while True:
            wave = 0
            while wave < min(width, MOST_RUNS) and self.step((wave + 1) * batch) <= left:
                wave += 1
            if not wave:
                return max(count, 1)
            left -= self.step(wave * batch)
            count += wave


LAUNCH_BOUND = Device(
    name="launch-bound",
    # an H200, SmolLM2-135M, batch 16, rows of 25.4 tokens: 1, 4, 16 and 32 trials at once
    points=tuple(
        (16.0 * n, 16 * n * 25.4 / rate)
        for n, rate in ((1, 31_549), (4, 95_977), (16, 217_445), (32, 283_268))
    ),
)
COMPUTE_BOUND = Device(name="compute-bound", points=((16.0, 1.0),), launches=False)
"""Two CPU cores, or an 8B base: as long as its tokens need."""
DEVICES = {device.name: device for device in (LAUNCH_BOUND, COMPUTE_BOUND)}


def play_on(
    device: Device, strategy: Strategy, runner: TableRunner, limit: float = inf
) -> tuple[tuple[TrialResult, ...], float]:
    """Runs a strategy until it ends or the clock stops it; (history, seconds).

    All trials asked for train at once; each time one ends the strategy is asked again with the others running. A
    result that the table gave before costs nothing. What is unfinished at `limit` seconds is lost.
    """
    history: list[TrialResult] = []
    live: list[tuple[TrialResult, float]] = []  # with the steps that it has left
    now = 0.0
    while True:
        wanted = strategy.ask(history, [result.asked for result, _ in live])
        for result in runner.run(wanted, strategy.context):
            live.append((result, steps(result.asked, strategy.context) if result.cost else 0.0))
        if not live:
            return tuple(history), now
        ahead = min(left for _, left in live)
        rows = sum(result.asked.hyper_parameters.batch_size for result, left in live if left)
        now += ahead * device.step(rows) if rows else 0.0
        if now > limit * (1 + 1e-9):
            return tuple(history), limit
        live = [(result, left - ahead) for result, left in live]
        history += [result for result, left in live if left <= 1e-9]
        live = [(result, left) for result, left in live if left > 1e-9]


def steps(trial: Trial, context: SearchContext) -> float:
    """Optimiser steps of a trial."""
    setting = trial.hyper_parameters
    return float(ceil(context.rows * trial.fraction * setting.epochs / setting.batch_size))
