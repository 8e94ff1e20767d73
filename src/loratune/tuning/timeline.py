"""Where the wall clock of a run goes, and how many trials trained at each moment, from its events."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any

from loratune.reporting.facts import PackSpan
from loratune.values.events import Event, Finished, Phase, PhaseBegan, Progress, StageBegan, TrialEnded

TIMELINE = "timeline"
"""The fact of a study that holds what earlier parts of a run took."""
_OCCUPIED = "trial seconds"
"""Seconds of steps times the trials in them."""
START, TRAINING, EVALUATION, WAITING = "start-up", "training", "evaluation", "waiting"
NAMES = {
    Phase.LOADING: START,
    Phase.CALIBRATING: "calibration",
    Phase.ANALYSING: "analysis",
    Phase.FINAL_RUN: "final run",
    Phase.TESTING: "test",
    Phase.WRITING: "writing",
}
"""Parts that are a phase; searching is training, evaluation and waiting."""
PARTS = (START, "calibration", TRAINING, EVALUATION, WAITING, "analysis", "final run", "test", "writing")
"""Parts in the order in which they come."""


class Timeline:
    """A subscriber. Of the search it knows the seconds of steps (training) and those that its trials had a share in
    beyond (evaluation); the rest is waiting: trials that enter and leave, questions to the strategy, recording.
    """

    def __init__(self, *, started: float, clock: Callable[[], float] = monotonic) -> None:
        """`started`: as the user's clock began, before the first event."""
        self._clock = clock
        self._phase, self._since = Phase.LOADING, started
        self._seconds: dict[str, float] = defaultdict(float)
        self._training = self._shares = self._occupied = 0.0
        self._earlier: Mapping[str, float] = {}

    def begin_with(self, earlier: Mapping[str, float]) -> None:
        """What `kept` gave in an earlier part of the run."""
        self._earlier = dict(earlier)

    def __call__(self, event: Event) -> None:
        """Take notice of one event."""
        match event:
            case PhaseBegan(phase=phase):
                self._close(phase)
            case Progress() if self._phase is Phase.SEARCHING:
                self._training += event.seconds
                self._occupied += event.seconds * event.occupancy
            case TrialEnded() if self._phase is Phase.SEARCHING:
                self._shares += event.seconds
            case Finished():
                self._close(self._phase)
            case _:
                pass

    def _close(self, following: Phase) -> None:
        now = self._clock()
        self._book(self._seconds, now - self._since)
        self._phase, self._since = following, now

    def _book(self, seconds: dict[str, float], taken: float) -> None:
        """Assign seconds of the current phase to it, never more than have passed."""
        if self._phase is not Phase.SEARCHING:
            seconds[NAMES[self._phase]] += taken
            return
        training = min(taken, self._training - seconds[TRAINING])
        evaluation = min(taken - training, max(0.0, self._shares - self._training - seconds[EVALUATION]))
        seconds[TRAINING] += training
        seconds[EVALUATION] += evaluation
        seconds[WAITING] += taken - training - evaluation

    def seconds(self) -> dict[str, float]:
        """Up to now, by part, earlier parts of a resumed run included; parts that did not come are 0."""
        found = defaultdict(float, self._seconds)
        self._book(found, self._clock() - self._since)
        return {name: found[name] + self._earlier.get(name, 0.0) for name in PARTS}

    def kept(self) -> dict[str, float]:
        """What a later part of the run begins with."""
        return {**self.seconds(), _OCCUPIED: self._occupied + self._earlier.get(_OCCUPIED, 0.0)}

    @property
    def mean_trials_in_pack(self) -> float:
        """Mean over the search, weighted by the seconds of its steps; 0 where none was taken."""
        training = self._training + self._earlier.get(TRAINING, 0.0)
        occupied = self._occupied + self._earlier.get(_OCCUPIED, 0.0)
        return occupied / training if training else 0.0


PACKS = "packs"
"""The fact of a study that holds what an earlier part of a run gave."""
_MOST = 400
_CLOSE = 1.0
"""Seconds between two spans that count as one: evaluations, trials that enter and leave."""


class Occupancy:
    """A subscriber."""

    def __init__(self, *, started: float, clock: Callable[[], float] = monotonic) -> None:
        """`started`: as the user's clock began."""
        self._clock, self._started = clock, started
        self._stage = ""
        self._spans: list[PackSpan] = []

    def begin_with(self, earlier: Sequence[Sequence[Any]], seconds: float) -> None:
        """Take over what `kept` gave in an earlier part of the run, which took `seconds`."""
        self._spans = [PackSpan(*each) for each in earlier]
        self._started -= seconds

    def __call__(self, event: Event) -> None:
        """Take notice of one event."""
        match event:
            case StageBegan(name=name):
                self._stage = name
            case Progress():
                now = self._clock() - self._started
                self._add(PackSpan(max(0.0, now - event.seconds), now, event.occupancy, self._stage))
            case _:
                pass

    def spans(self) -> tuple[PackSpan, ...]:
        """Up to now."""
        return tuple(self._spans)

    def kept(self) -> list[list[Any]]:
        """What a later part of the run begins with, as JSON values."""
        return [[each.began, each.ended, each.trials, each.stage] for each in self._spans]

    def _add(self, new: PackSpan) -> None:
        last = self._spans[-1] if self._spans else None
        if last and _goes_on(last, new):
            self._spans[-1] = _joined(last, new)
            return
        self._spans.append(new)
        if len(self._spans) > _MOST:
            pairs = zip(self._spans[::2], [*self._spans[1::2], None], strict=False)
            self._spans = [each for one, two in pairs for each in _thinned(one, two)]


def _goes_on(last: PackSpan, new: PackSpan) -> bool:
    alike = last.stage == new.stage and round(last.trials) == round(new.trials)
    return alike and new.began - last.ended <= _CLOSE


def _thinned(one: PackSpan, two: PackSpan | None) -> list[PackSpan]:
    """Both as one where they belong to the same stage."""
    if two is None:
        return [one]
    return [_joined(one, two)] if one.stage == two.stage else [one, two]


def _joined(one: PackSpan, two: PackSpan) -> PackSpan:
    first, second = one.ended - one.began, two.ended - two.began
    whole = max(first + second, 1e-9)
    trials = (one.trials * first + two.trials * second) / whole
    return PackSpan(one.began, two.ended, trials, one.stage)
