"""How far a run is, how long it will still take, and its best trials so far. Every view of a run shows these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from rich.table import Table

from loratune.reporting.wording import rate
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
    Started,
    TrialEnded,
)

_TOO_SOON = 0.02
"""Share of a part before which its own pace says nothing."""


@dataclass(kw_only=True)
class Part:
    """A part of a run that goes at one pace; costs are full-run equivalents."""

    seconds: float | None = None
    """Planned."""
    cost: float = 0.0
    """Expected."""
    began: float = 0.0
    done: float = 0.0
    """Cost of the trials that have ended."""

    def left(self, now: float, under_way: float) -> float | None:
        """Seconds; None where nothing is known. `under_way`: what the trials that train now have cost so far."""
        spent = now - self.began
        planned = None if self.seconds is None else max(0.0, self.seconds - spent)
        share = min(1.0, (self.done + under_way) / self.cost) if self.cost else 0.0
        if share < _TOO_SOON:
            return planned
        measured = spent * (1 - share) / share
        return measured if planned is None else share * measured + (1 - share) * planned


@dataclass(kw_only=True)
class Pace:
    """Search, final run and test rows, one after the other."""

    part: Part = field(default_factory=Part)
    """The current part: the search, then the final run."""
    final_trial: float | None = None
    """Planned seconds of the final run's training, for each of its trials."""
    final_trials: int = 0
    """Trials of the final run that have not ended; before it those that are planned."""
    test_seconds: float | None = None
    """Planned."""
    in_final: bool = False
    test_began: float | None = None

    def begin_final(self, now: float, trials: int) -> None:
        """Begin training `trials` trials in a pack, and nothing else; again where one is repeated."""
        planned = None if self.final_trial is None else self.final_trial * trials
        self.part = Part(seconds=planned, cost=float(trials), began=now)
        self.final_trials, self.in_final = trials, True

    def begin_test(self, now: float) -> None:
        """Nothing is left to be trained."""
        self.test_began = now

    def ended(self, cost: float) -> None:
        """A trial has; one of the final run that stopped early leaves less to be done than was expected."""
        self.part.done += cost
        if self.in_final:
            self.final_trials -= 1
            self.part.cost = self.part.done + self.final_trials

    def already(self, cost: float) -> None:
        """Count what an earlier run did of the search."""
        search = self.part
        if search.cost > 0 and search.seconds is not None:
            left = max(0.0, 1 - cost / search.cost)
            self.part = replace(search, seconds=search.seconds * left, cost=search.cost * left)

    def left(self, now: float, under_way: float) -> float | None:
        """Seconds until all is done; None where nothing is known."""
        if self.test_began is not None:
            return (
                None if self.test_seconds is None else max(0.0, self.test_seconds - (now - self.test_began))
            )
        left = self.part.left(now, under_way)
        if left is None:
            return None
        to_come = 0.0 if self.in_final else (self.final_trial or 0.0) * self.final_trials
        return left + to_come + (self.test_seconds or 0.0)


PLACES = 5


class Leaderboard:
    """Trials on all rows by their validation NLL, each under its own seed; those on part of the rows do not compare."""

    def __init__(self, places: int = PLACES) -> None:
        self._places = places
        self._trials: list[TrialEnded] = []

    def add(self, ended: TrialEnded) -> None:
        """Take it in where it belongs; what diverged or saw part of the rows is passed over."""
        if ended.finished and ended.trial.fraction == 1:
            self._trials = sorted([*self._trials, ended], key=lambda each: each.nll)[: self._places]

    @property
    def best(self) -> TrialEnded | None:
        """None until a trial on all rows has finished."""
        return self._trials[0] if self._trials else None

    @property
    def trials(self) -> tuple[TrialEnded, ...]:
        """The best first."""
        return tuple(self._trials)

    def __len__(self) -> int:
        return len(self._trials)

    def table(self) -> Table:
        """A row for each trial, the best first."""
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for heading in ("best so far", "r", "learning rate", "batch", "alpha", "epochs", "seed", "NLL"):
            table.add_column(heading, justify="right")
        for place, each in enumerate(self._trials, 1):
            values = each.trial.hyper_parameters
            table.add_row(
                str(place),
                str(values.r),
                rate(values.learning_rate),
                str(values.batch_size),
                f"{values.lora_alpha:g}",
                f"{values.epochs:g}",
                str(each.trial.seed),
                f"{each.nll:.4f}",
                style="bold" if place == 1 else "",
            )
        return table


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
        """The current question of the search, or the current part of the run."""
        self.pack: Progress | None = None
        """The trials that train now."""
        self.leaders = Leaderboard(places)
        self._places = places
        self.done = self.trials = self.diverged = 0
        """Trials that have ended, that are expected in all, and of the former those that diverged."""
        self.price_per_hour = 0.0
        """0 where it is not known."""

    def __call__(self, event: Event) -> None:
        """Take notice of one event."""
        match event:
            case Started():
                self._anew()
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
        """Seconds until all is done; None where nothing is known."""
        under_way = sum(slot.trial.fraction * slot.share for slot in self.slots)
        return self._pace.left(self.elapsed, under_way)

    @property
    def slots(self) -> Sequence[LiveTrial]:
        """The pack's trials."""
        return self.pack.trials if self.pack else ()

    @property
    def tokens_per_second(self) -> float:
        """Speed of all packs together while they took steps; 0 before the first."""
        return self._tokens / self._busy if self._busy else 0.0

    def _anew(self) -> None:
        """Another run of the same command, as on a proxy and then on the larger model."""
        self.stage, self.pack = "", None
        self.leaders = Leaderboard(self._places)
        self.done = self.trials = self.diverged = self._tokens = 0
        self._busy = 0.0

    def _phase(self, phase: Phase) -> None:
        self.pack = None
        if phase is Phase.TESTING:
            self.trials = self.done
            self._pace.begin_test(self.elapsed)
        if phase not in _TRAINING:
            self.stage = str(phase)

    def _expect(self, planned: Planned) -> None:
        """Expect the planned trials, full-run equivalents and seconds from now on, those of the final run included."""
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
