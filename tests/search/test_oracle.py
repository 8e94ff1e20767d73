"""`bench/oracle.py` where the least overshoot follows from pencil and paper."""

import numpy as np
import pytest

from oracle import Truth, beliefs, least_overshoot, least_with_everything_known

WISH = {"regret": 0.02, "inferior": 0.05, "beat": False}


def two_tables(seed_sd: float) -> Truth:
    """Rank 2 is enough on the first; on the second it loses .02 and is inferior. Rank 8 is two doublings more."""
    return Truth(
        ranks=(2, 8),
        regret=np.array([[0.0, 0.0], [0.02, 0.0]]),
        inferior=np.array([[0.0, 0.0], [1.0, 0.0]]),
        overshoot=np.array([[0.0, 2.0], [0.0, 0.0]]),
        opponent=np.array([0.0, 0.02]),
        seed_sd=np.array([seed_sd, seed_sd]),
    )


def bound(known: Truth, **wish: object) -> float:
    return least_overshoot(known, beliefs(known, 1, np.random.default_rng(0)), **{**WISH, **wish})


def test_tables_that_noise_hides_need_one_answer_for_both() -> None:
    """Rank 2 in a tenth of the answers makes 5 % inferior; the rest overshoots by 2 on one table of two."""
    assert bound(two_tables(100.0)) == pytest.approx(0.9, abs=0.03)
    assert bound(two_tables(100.0), inferior=0.25) == pytest.approx(0.5, abs=0.03)


def test_tables_that_are_recognised_need_none() -> None:
    assert bound(two_tables(1e-4)) == pytest.approx(0.0, abs=0.01)
    assert least_with_everything_known(two_tables(1e-4), **WISH) == pytest.approx(0.0, abs=1e-9)


def test_an_opponent_that_happens_to_be_at_the_bottom_costs_its_overshoot() -> None:
    """Where rank 2 loses .001 on the first table and the opponent nothing, rank 8 must be taken there."""
    known = two_tables(1e-4)
    known.regret[0, 0] = 0.001
    assert least_with_everything_known(known, **WISH) == pytest.approx(0.0, abs=1e-9)
    assert least_with_everything_known(known, **{**WISH, "beat": True}) == pytest.approx(1.0, abs=1e-6)
    assert bound(known, beat=True) == pytest.approx(1.0, abs=0.05)


def test_what_no_answer_meets_is_called_impossible() -> None:
    known = two_tables(1e-4)
    known.regret[:] = 0.03
    assert least_with_everything_known(known, **WISH) is None
