"""The time left of a run, by its parts; a planned search of 100 s, a final run of 2 x 40 s, 30 s of test rows."""

import pytest

from loratune.reporting.progress import Pace, Part


def pace() -> Pace:
    return Pace(part=Part(seconds=100.0, cost=10.0), final_trial=40.0, final_trials=2, test_seconds=30.0)


@pytest.mark.parametrize("taken", [10.0, 100.0, 1000.0])
def test_the_pace_of_the_search_says_nothing_of_the_final_run(taken: float) -> None:
    """Packs of the search are fuller."""
    subject = pace()
    assert subject.left(0.0, 0.0) == 100 + 80 + 30
    assert subject.left(taken / 2, 5.0) == pytest.approx(
        0.5 * taken / 2 + 0.5 * max(0, 100 - taken / 2) + 110
    )
    subject.ended(10.0)
    assert subject.left(taken, 0.0) == 110
    subject.begin_final(taken, 2)
    assert subject.left(taken, 0.0) == 110
    assert subject.left(taken + 40, 1.0) == 70
    assert subject.left(taken + 80, 2.0) == 30


def test_a_final_trial_that_stops_early_leaves_less_to_do() -> None:
    subject = pace()
    subject.begin_final(100.0, 2)
    subject.ended(0.3)
    assert subject.left(140.0, 0.5) == pytest.approx(30 + 40 * 0.5 / 0.8 * 0.8 / 1.3 + 40 * 0.5 / 1.3)
    subject.ended(0.9)
    assert subject.left(150.0, 0.0) == 30


def test_a_final_run_that_is_repeated_has_a_whole_one_to_come() -> None:
    """And one of which only half is still to be trained has half of it."""
    subject = pace()
    subject.begin_final(100.0, 2)
    subject.ended(0.6)
    subject.ended(1.0)
    assert subject.left(180.0, 0.0) == 30
    subject.begin_final(180.0, 1)
    assert subject.left(180.0, 0.0) == 40 + 30
    assert subject.left(200.0, 0.5) == 20 + 30


def test_what_an_earlier_run_has_done_is_not_to_come() -> None:
    subject = pace()
    subject.already(7.5)
    assert subject.left(0.0, 0.0) == 25 + 110
    subject.already(100.0)
    assert subject.left(0.0, 0.0) == 110


def test_test_rows_take_what_was_planned() -> None:
    subject = pace()
    subject.begin_test(500.0)
    assert subject.left(510.0, 0.0) == 20
    assert subject.left(600.0, 0.0) == 0


def test_without_a_plan_nothing_is_said_until_there_is_a_pace() -> None:
    subject = Pace()
    subject.begin_final(0.0, 1)
    assert subject.left(5.0, 0.0) is None
    assert subject.left(10.0, 0.25) == pytest.approx(30)
    subject.begin_test(40.0)
    assert subject.left(41.0, 0.0) is None
