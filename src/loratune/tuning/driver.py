"""The loop of every search: ask, run, record, decide; and its rehearsal on a clock, for a plan.

A real search, one against a table of measured results and one on a clock differ in their runner alone. What a
search asks for depends on results, so its trials do not share one pack; the rehearsal, which trains nothing, finds
out which ones do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Any, cast

from loratune.costs.planner import Planner
from loratune.runners.clocked import ClockedRunner, ClockedStage
from loratune.runners.runner import Runner, TrialDone, TrialJob
from loratune.search.expected import expected
from loratune.search.strategy import Strategy
from loratune.values import Decision, Stage, Trial, TrialResult
from loratune.values.events import Event, Findings, StageBegan, Tell, TrialEnded, discard

_SECONDS = 5.0
"""Least time between two of them."""
_SHARE = 0.02
"""Largest share of the time that goes into them."""


class FindingsTeller:
    """A subscriber of the search's events. Deciding is pure, so that looking changes nothing."""

    def __init__(
        self, decide: Callable[[], Decision], tell: Tell, *, clock: Callable[[], float] = monotonic
    ) -> None:
        """`decide`: on all results so far."""
        self._decide, self._tell, self._clock = decide, tell, clock
        self._next = -1.0
        self._new = False

    def __call__(self, event: Event) -> None:
        """Take notice of one event; results that came too soon after the last findings count at a later one."""
        self._new |= isinstance(event, TrialEnded)
        began = self._clock()
        if not self._new or began < self._next:
            return
        self._new = False
        self._tell(findings_of(self._decide()))
        ended = self._clock()
        self._next = ended + max(_SECONDS, (ended - began) / _SHARE)


def findings_of(decision: Decision) -> Findings:
    """The event for a decision."""
    return Findings(hyper_parameters=decision.hyper_parameters, evidence=decision.evidence)


Ask = Callable[[Sequence[TrialResult], Sequence[Trial]], Sequence[Trial]]
"""Gives the next trials from the results so far and the trials still running; none: there is nothing to ask."""


def record_nothing(result: TrialResult) -> None:
    """Nothing is kept."""


@dataclass(kw_only=True)
class Driver:
    """Plays a strategy, or what asks like one, to its end."""

    ask: Ask
    runner: Runner
    record: Callable[[TrialResult], None] = record_nothing
    """Keeps a result for good; called the moment it comes, before anything else is asked for."""
    tell: Tell = discard
    after_each: Callable[[], None] = lambda: None
    """Called after every wave."""
    history: list[TrialResult] = field(default_factory=list)
    """All results, those of earlier runs first."""

    def search(self) -> bool:
        """Ask and run until nothing is left to ask; returns whether the runner's clock or the user cut it."""
        while trials := self.ask(self.history, ()):
            if self.runner.late:
                return True
            self._begin(trials)
            self._run(trials)
            self.after_each()
        return False

    def _run(self, trials: Sequence[Trial]) -> None:
        # what was done in this call is handed to `_more` by the runner, since only it knows what counts as ended
        before = tuple(self.history)

        def more(done: Sequence[TrialResult], running: Sequence[Trial]) -> Sequence[Trial]:
            further = self.ask((*before, *done), running)
            if further:
                self._begin(further)
            return further

        results = cast(Any, self.runner.run([TrialJob(trial=trial) for trial in trials], more))
        with closing(results):
            for done in results:
                if not isinstance(done, TrialDone):
                    raise TypeError(f"a trial must come to a TrialDone, got {type(done).__name__}.")
                self.record(done.result)
                self.history.append(done.result)
                self.tell(TrialEnded.of(done.result))

    def _begin(self, trials: Sequence[Trial]) -> None:
        self.tell(StageBegan(name=str(trials[0].stage), trials=len(trials)))


def play(strategy: Strategy, runner: Runner, history: Sequence[TrialResult] = ()) -> list[TrialResult]:
    """All results of a strategy that is played to its end."""
    driver = Driver(ask=strategy.ask, runner=runner, history=list(history))
    driver.search()
    return driver.history


def decide(strategy: Strategy, runner: Runner) -> tuple[Decision, list[TrialResult]]:
    """The strategy's decision after its last trial, and the results behind it."""
    history = play(strategy, runner)
    return strategy.decide(history), history


Rehearsal = Mapping[Stage, ClockedStage]
"""The stages that came."""


def rehearse(strategy: Strategy, planner: Planner) -> Rehearsal:
    """The whole search, with `expected` results, as `LocalRunner` would pack its trials."""
    runner = ClockedRunner(measure=partial(expected, context=strategy.context), planner=planner)
    play(strategy, runner)
    return runner.stages
