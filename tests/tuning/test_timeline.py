"""The parts of a run's time on a clock that is turned by hand: they are known, and they sum to it."""

from loratune.tuning.timeline import PARTS, Timeline
from loratune.values import Trial, TrialResult, default_recipe
from loratune.values.events import Event, Finished, Phase, PhaseBegan, Progress, TrialEnded

TRIAL = Trial(hyper_parameters=default_recipe())


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.timeline = Timeline(started=self.now, clock=lambda: self.now)

    def after(self, seconds: float, event: Event) -> None:
        self.now += seconds
        self.timeline(event)


def phase(name: Phase) -> PhaseBegan:
    return PhaseBegan(phase=name)


def steps(seconds: float, trials: float) -> Progress:
    return Progress(trials=(), steps=1, tokens=1, seconds=seconds, occupancy=trials)


def ended(seconds: float) -> TrialEnded:
    return TrialEnded.of(TrialResult(asked=TRIAL, trial=TRIAL, seconds=seconds))


def a_run() -> Clock:
    clock = Clock()
    clock.after(1, phase(Phase.LOADING))
    clock.after(5, phase(Phase.CALIBRATING))
    clock.after(3, phase(Phase.SEARCHING))
    clock.after(10, steps(8, 4))
    clock.after(7, steps(4, 1))
    clock.after(0, ended(15))  # 12 of steps, 3 of evaluations; 17 have gone by
    clock.after(2, phase(Phase.ANALYSING))
    clock.after(1, phase(Phase.FINAL_RUN))
    clock.after(20, steps(19, 2))  # of the final run: no part of the search
    clock.after(1, phase(Phase.TESTING))
    clock.after(4, phase(Phase.WRITING))
    clock.after(2, Finished(directory="", seconds=0))
    return clock


def test_each_part_is_what_the_events_say() -> None:
    clock = a_run()
    found = clock.timeline.seconds()
    assert found == {
        "start-up": 6, "calibration": 3, "training": 12, "evaluation": 3, "waiting": 4, "analysis": 1,
        "final run": 21, "test": 4, "writing": 2,
    }  # fmt: skip
    assert tuple(found) == PARTS
    assert sum(found.values()) == clock.now - 100
    assert clock.timeline.mean_trials_in_pack == (8 * 4 + 4 * 1) / 12


def test_a_resumed_run_adds_to_what_was_kept() -> None:
    first, second = a_run(), a_run()
    second.timeline.begin_with(first.timeline.kept())
    assert second.timeline.seconds() == {name: 2 * value for name, value in first.timeline.seconds().items()}
    assert second.timeline.mean_trials_in_pack == first.timeline.mean_trials_in_pack


def test_shares_of_trials_never_make_more_than_the_clock() -> None:
    """A trial whose seconds overlap with others', by rounding or by a clock of another kind."""
    clock = Clock()
    clock.after(0, phase(Phase.SEARCHING))
    clock.after(1, steps(1, 1))
    clock.after(1, ended(10))
    found = clock.timeline.seconds()
    assert sum(found.values()) == 2
    assert found["evaluation"] == 1
    assert found["waiting"] == 0
