"""`bench/stopping.py` on curves made by hand."""

import pytest

from stopping import stop

CURVES = {
    (8, 1e-4, 0): {0.5: 3.0, 1.0: 2.0},  # far behind, and stays there
    (8, 1e-3, 0): {0.5: 1.0, 1.0: 0.5},
    (8, 1e-2, 0): {0.5: 2.0, 1.0: 0.4},  # a higher rate that is behind: annealed below the others
    (32, 1e-4, 0): {0.5: 2.6, 1.0: 0.3},  # a lower rate that makes up for it
    (32, 1e-3, 0): {0.5: 2.0, 1.0: 0.6},
}


def test_the_lower_rate_alone_is_stopped_and_a_best_run_that_was_is_counted() -> None:
    found = stop(CURVES, 0.5, 1.25)
    assert (found.pairs, found.overtaken) == (3, 1)  # behind 1e-3 and 1e-2 at rank 8, behind 1e-3 at rank 32
    assert (found.stopped, found.runs) == (2, 5)
    assert (found.best_stopped, found.ranks) == (1, 2)


def test_a_wider_ratio_stops_only_what_is_hopeless() -> None:
    found = stop(CURVES, 0.5, 2.0)
    assert (found.stopped, found.best_stopped) == (1, 0)
    assert stop(CURVES, 0.1, 2.0).stopped == 0  # never read there


def test_on_a_device_where_width_is_nearly_free_stopping_saves_less_than_its_share() -> None:
    found = stop(CURVES, 0.5, 1.25)
    assert 0 < found.saved < 0.5 * found.stopped / found.runs
    assert stop({**CURVES}, 0.5, 99.0).saved == pytest.approx(0.0)
