"""How many trials trained side by side and when, from events by a clock that is known."""

from loratune.reporting.facts import PackSpan
from loratune.tuning.timeline import Occupancy
from loratune.values.events import Progress, StageBegan


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def told(trials: float, seconds: float) -> Progress:
    return Progress(trials=(), steps=1, tokens=10, seconds=seconds, occupancy=trials)


def test_stretches_of_one_stage_and_width_are_one() -> None:
    clock = Clock()
    occupancy = Occupancy(started=90.0, clock=clock)
    occupancy(StageBegan(name="rank"))
    occupancy(told(4.0, 2.0))
    clock.now = 102.0
    occupancy(told(4.0, 1.5))
    clock.now = 104.0
    occupancy(told(2.0, 2.0))
    occupancy(StageBegan(name="alpha"))
    clock.now = 110.0
    occupancy(told(2.0, 1.0))
    first, second, third = occupancy.spans()
    assert first == PackSpan(8.0, 12.0, 4.0, "rank")
    assert second == PackSpan(12.0, 14.0, 2.0, "rank")
    assert third == PackSpan(19.0, 20.0, 2.0, "alpha")


def test_a_later_part_of_a_run_goes_on_where_the_earlier_ended() -> None:
    clock = Clock()
    earlier = Occupancy(started=90.0, clock=clock)
    earlier(told(3.0, 1.0))
    later = Occupancy(started=99.0, clock=clock)
    later.begin_with(earlier.kept(), 10.0)
    later(told(5.0, 1.0))
    assert later.spans() == (PackSpan(9.0, 10.0, 3.0, ""), PackSpan(10.0, 11.0, 5.0, ""))


def test_a_long_run_stays_short() -> None:
    clock = Clock()
    occupancy = Occupancy(started=100.0, clock=clock)
    for i in range(5000):
        clock.now += 1.0
        occupancy(told(float(i % 7), 1.0))
    spans = occupancy.spans()
    assert 100 < len(spans) <= 401
    assert (spans[0].began, spans[-1].ended) == (0.0, 5000.0)
    mean = sum(each.trials * (each.ended - each.began) for each in spans) / 5000
    assert abs(mean - 3.0) < 0.01
