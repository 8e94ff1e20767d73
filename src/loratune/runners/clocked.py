"""Trials on a clock instead of a device: their results come from a function, their seconds from a plan's step times.

A table of measured results, or what the laws expect, is played as a search would run. Trains nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from loratune.costs.planner import LivePack, Planner
from loratune.runners.queue import TrialQueue
from loratune.runners.runner import Done, Job, More, TrialDone, TrialJob
from loratune.values import Stage, Trial, TrialResult

Measure = Callable[[Trial], TrialResult]
"""The result of a trial."""


def _trials(jobs: Sequence[Job]) -> list[Trial]:
    """Raises `TypeError` for jobs that need a model."""
    for job in jobs:
        if not isinstance(job, TrialJob):
            raise TypeError(
                f"without a model there are results of trials only, not of a {type(job).__name__}."
            )
    return [job.trial for job in jobs if isinstance(job, TrialJob)]


@dataclass(frozen=True, kw_only=True)
class InstantRunner:
    """A `Runner` whose trials end the moment they are asked for, in that order."""

    measure: Callable[[Sequence[Trial]], Sequence[TrialResult]]
    """The results of trials that are asked for together."""

    @property
    def late(self) -> bool:
        return False

    def run(self, jobs: Sequence[Job], more: More | None = None) -> Iterator[Done]:
        """Each trial's result; nothing is ever still running, so that nothing more is asked for."""
        for result in self.measure(_trials(jobs)):
            yield TrialDone(job=TrialJob(trial=result.asked), result=result)


@dataclass(kw_only=True, slots=True)
class ClockedStage:
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


@dataclass(kw_only=True)
class ClockedRunner:
    """A `Runner` that packs trials as `LocalRunner` does and adds up the seconds of their steps."""

    measure: Measure
    planner: Planner
    stages: dict[Stage, ClockedStage] = field(default_factory=lambda: defaultdict(ClockedStage))
    """Those that came."""

    @property
    def late(self) -> bool:
        return False

    def run(self, jobs: Sequence[Job], more: More | None = None) -> Iterator[Done]:
        """Step by step, in strides up to the next end of a trial."""
        queue = TrialQueue(self.planner, _trials(jobs), more)
        left: dict[str, int] = {}
        tokens: dict[str, float] = {}
        while True:
            while len(left) < queue.slots and (trial := queue.next()) is not None:
                load = self.planner.load(trial)
                left[trial.key], tokens[trial.key] = load.steps, load.tokens
            if not left:
                return
            stride = min(left.values())
            self._count(queue, tokens, stride)
            left = {key: steps - stride for key, steps in left.items()}
            for key in [key for key, steps in left.items() if steps == 0]:
                del left[key], tokens[key]
                yield self._ended(queue, queue.running[key])

    def _count(self, queue: TrialQueue, tokens: Mapping[str, float], stride: int) -> None:
        """So many steps of all that run."""
        everything = sum(tokens.values())
        seconds = stride * self.planner.times.seconds(everything)
        pack = LivePack(tuple(trial.hyper_parameters for trial in queue.running.values()), everything)
        for name in {trial.stage for trial in queue.running.values()}:
            self.stages[name].packs.append(pack)
        for key, trial in queue.running.items():
            stage = self.stages[trial.stage]
            stage.seconds += seconds * tokens[key] / everything
            stage.widest = max(stage.widest, len(tokens))

    def _ended(self, queue: TrialQueue, trial: Trial) -> TrialDone:
        result = self.measure(trial)
        stage = self.stages[trial.stage]
        stage.runs += result.cost
        stage.trials += 1
        queue.ended(trial, result)
        return TrialDone(job=TrialJob(trial=trial), result=result)
