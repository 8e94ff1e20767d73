"""Trials whose results are known beforehand, from a table or a formula: a `Runner` that takes no time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from loratune.runners.clocked import trials_of
from loratune.runners.runner import Done, Job, More, TrialDone, TrialJob
from loratune.values import Trial, TrialResult


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
        for result in self.measure(trials_of(jobs)):
            yield TrialDone(job=TrialJob(trial=result.asked), result=result)
