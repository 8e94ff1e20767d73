"""How far a run is, from its events: counts, leaders, speed, time left. Every view of a run shows these."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from loratune.reporting.leaderboard import PLACES, Leaderboard
from loratune.reporting.pace import Pace, Part
from loratune.values import Stage, TrialState
from loratune.values.events import (
    Event,
    Finished,
    LiveTrial,
    Phase,
    PhaseBegan,
    Planned,
    Progress,
    Resumed,
    StageBegan,
    TrialEnded,
)

_TRAINING = (Phase.SEARCHING, Phase.FINAL_RUN)
"""Phases of which the stages are shown, not the phase."""


class RunProgress:
    """A subscriber."""

    def __init__(self, clock: Callable[[], float], *, places: int = PLACES) -> None:
        """`clock`: seconds since the run began; `places` of the leaderboard."""
        self._clock = clock
        self._pace = Pace()
        self._tokens = 0
        self._busy = 0.0
        self.stage = ""
        """The question of the search that is asked now, or what else goes on."""
        self.pack: Progress | None = None
        """Those that train now."""
        self.leaders = Leaderboard(places)
        self.done = self.trials = self.diverged = 0
        """Trials that have ended, that are expected in all, and of the former those that diverged."""
        self.price_per_hour = 0.0
        """0 where it is not known."""

    def __call__(self, event: Event) -> None:
        """Take notice of one event."""
        match event:
            case PhaseBegan(phase=phase):
                self._phase(phase)
            case Planned():
                self._expect(event)
            case Resumed(trials=trials):
                self._resumed(trials)
            case StageBegan(name=name, trials=trials):
                self._begin_stage(name, trials)
            case Progress():
                self.pack = event
                self._tokens += event.tokens
                self._busy += event.seconds
            case TrialEnded():
                self._count(event)
                self._pace.ended(event.cost)
            case Finished():
                self.stage, self.pack = "", None
            case _:
                pass

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return self._clock()

    @property
    def seconds_left(self) -> float | None:
        """Until all is done; None where nothing is known."""
        under_way = sum(slot.trial.fraction * slot.share for slot in self.slots)
        return self._pace.left(self.elapsed, under_way)

    @property
    def slots(self) -> Sequence[LiveTrial]:
        """Of the pack."""
        return self.pack.trials if self.pack else ()

    @property
    def tokens_per_second(self) -> float:
        """Of all packs together while they took steps; 0 before the first."""
        return self._tokens / self._busy if self._busy else 0.0

    def _phase(self, phase: Phase) -> None:
        self.pack = None
        if phase is Phase.TESTING:
            self.trials = self.done
            self._pace.begin_test(self.elapsed)
        if phase not in _TRAINING:
            self.stage = str(phase)

    def _expect(self, planned: Planned) -> None:
        """From now on so many trials, full-run equivalents and seconds, those of the final run included."""
        final = planned.final_trials
        self.trials = planned.plan.trials + final
        each = (planned.final_run_seconds - planned.test_seconds) / final if final else 0.0
        seconds = planned.search_seconds + planned.final_seconds - planned.final_run_seconds
        self._pace = Pace(
            part=Part(seconds=seconds, cost=planned.plan.cost, began=self.elapsed),
            final_trial=each,
            final_trials=final,
            test_seconds=planned.test_seconds,
        )
        self.price_per_hour = planned.price_per_hour

    def _resumed(self, trials: Sequence[TrialEnded]) -> None:
        """They count as done, not as work of this run."""
        for trial in trials:
            self._count(trial)
        self._pace.already(sum(trial.cost for trial in trials))

    def _begin_stage(self, name: str, trials: int) -> None:
        """Nothing else is left to be trained once it is the final run."""
        if name == str(Stage.FINAL):
            self.pack = None
            self.trials = self.done + trials
            self._pace.begin_final(self.elapsed, trials)
        else:
            self.trials = max(self.trials, self.done + trials)
        self.stage = name

    def _count(self, ended: TrialEnded) -> None:
        self.done += 1
        self.diverged += ended.state is TrialState.DIVERGED
        self.leaders.add(ended)
