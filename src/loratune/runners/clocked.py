"""Trials on a clock instead of a device: their results come from a function, their seconds from a plan's step times.

A table of measured results, or what the laws expect, is played as a search would run. Trains nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from loratune.costs.planner import LivePack, Planner
from loratune.runners.queue import TrialQueue
from loratune.runners.runner import Done, Job, More, TrialDone, TrialJob
from loratune.values import Stage, Trial, TrialResult

Measure = Callable[[Trial], TrialResult]
"""The result of a trial."""


def trials_of(jobs: Sequence[Job]) -> list[Trial]:
    """What the jobs train. Raises `TypeError` for jobs that need a model."""
    for job in jobs:
        if not isinstance(job, TrialJob):
            raise TypeError(
                f"without a model there are results of trials only, not of a {type(job).__name__}."
            )
    return [job.trial for job in jobs if isinstance(job, TrialJob)]


@dataclass(kw_only=True, slots=True)
class ClockedStage:
    """What one stage took."""

    seconds: float = 0.0
    """Time in training; a step that trials of two stages share is shared out by their tokens."""
    runs: float = 0.0
    """Full-run equivalents."""
    trials: int = 0
    widest: int = 0
    """Most trials of a pack with one of this stage in it."""
    packs: list[LivePack] = field(default_factory=list)
    """All of them."""


_ROUNDING = 1e-9
"""Rounding error of steps and of seconds: what is left of a trial that ends together with another."""


class _Pack:
    """What trains side by side on one device."""

    def __init__(self, planner: Planner) -> None:
        self._planner = planner
        self.trials: dict[str, Trial] = {}
        self.left: dict[str, float] = {}
        """Steps."""
        self.tokens: dict[str, float] = {}
        """Tokens of a step, by the trial's key."""

    def begin(self, trial: Trial) -> None:
        load = self._planner.load(trial)
        self.trials[trial.key] = trial
        self.left[trial.key], self.tokens[trial.key] = load.steps, load.tokens

    @property
    def seconds(self) -> float:
        """Until the next trial ends."""
        return min(self.left.values()) * self._step

    @property
    def _step(self) -> float:
        return self._planner.times.seconds(sum(self.tokens.values()))

    def run(self, seconds: float) -> list[Trial]:
        """Train for `seconds`; returns the trials that end then."""
        steps, first = seconds / self._step, min(self.left.values())
        if abs(steps - first) <= _ROUNDING * first:
            steps = first
        self.left = {key: left - steps for key, left in self.left.items()}
        ended = [key for key, left in self.left.items() if left <= _ROUNDING]
        for key in ended:
            del self.left[key], self.tokens[key]
        return [self.trials.pop(key) for key in ended]


@dataclass(kw_only=True)
class ClockedRunner:
    """A `Runner` that packs trials as `LocalRunner` does and adds up the seconds of their steps."""

    measure: Measure
    planner: Planner
    stages: dict[Stage, ClockedStage] = field(default_factory=lambda: defaultdict(ClockedStage))
    """The stages that came."""

    @property
    def late(self) -> bool:
        return False

    def run(self, jobs: Sequence[Job], more: More | None = None) -> Iterator[Done]:
        """Run in strides up to the next end of a trial, on all devices of the planner."""
        queue = TrialQueue(self.planner, trials_of(jobs), more)
        packs = [_Pack(self.planner) for _ in range(queue.devices)]
        while True:
            for device, pack in enumerate(packs):
                while len(pack.left) < queue.slots and (trial := queue.next(device)) is not None:
                    pack.begin(trial)
            busy = [pack for pack in packs if pack.left]
            if not busy:
                return
            seconds = min(pack.seconds for pack in busy)
            self._count(busy, seconds)
            for trial in [trial for pack in busy for trial in pack.run(seconds)]:
                yield self._ended(queue, trial)

    def _count(self, busy: Sequence[_Pack], seconds: float) -> None:
        """Count these seconds for all that run; the clock's, whatever the number of devices."""
        everything = sum(sum(pack.tokens.values()) for pack in busy)
        for pack in busy:
            live = LivePack(
                tuple(trial.hyper_parameters for trial in pack.trials.values()), sum(pack.tokens.values())
            )
            for name in {trial.stage for trial in pack.trials.values()}:
                self.stages[name].packs.append(live)
            for key, trial in pack.trials.items():
                stage = self.stages[trial.stage]
                stage.seconds += seconds * pack.tokens[key] / everything
                stage.widest = max(stage.widest, len(pack.trials))

    def _ended(self, queue: TrialQueue, trial: Trial) -> TrialDone:
        result = self.measure(trial)
        stage = self.stages[trial.stage]
        stage.runs += result.cost
        stage.trials += 1
        queue.ended(trial, result)
        return TrialDone(job=TrialJob(trial=trial), result=result)
