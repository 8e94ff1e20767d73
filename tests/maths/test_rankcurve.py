"""The posterior of the rank curve: what it must believe of curves whose truth is plain."""

import numpy as np
import pytest

from loratune.maths.rankcurve import RankCurve, Reading

RANKS = (1, 2, 4, 8, 16, 32, 64, 128)
MARGIN = 0.005


def curve(losses: dict[int, float], variance: float = 1e-10) -> RankCurve:
    return RankCurve(RANKS, MARGIN, tuple(Reading(r, loss, variance) for r, loss in losses.items()))


def test_a_quiet_power_law_is_extrapolated() -> None:
    """0.5 + 0.06 r^-0.65: rank 32 loses 0.0037, rank 16 0.0073 of a margin of 0.005."""
    found = curve({r: 0.5 + 0.06 * r**-0.65 for r in (1, 4, 128)}).adequate
    assert found[16] < 0.3 < 0.8 < found[64]
    assert found[128] == 1


@pytest.mark.parametrize("r", [2, 8, 32])
def test_a_quiet_reading_settles_its_own_rank(r: int) -> None:
    assert curve({128: 0.5, r: 0.504}).adequate[r] == pytest.approx(1, abs=1e-3)
    assert curve({128: 0.5, r: 0.506}).adequate[r] == pytest.approx(0, abs=1e-3)


def test_noise_leaves_the_prior() -> None:
    quiet, noisy = curve({128: 0.5, 4: 0.52}), curve({128: 0.5, 4: 0.52}, variance=1.0)
    prior = curve({128: 0.5})
    assert abs(noisy.adequate[4] - prior.adequate[4]) < 0.01 < abs(quiet.adequate[4] - prior.adequate[4])


def test_a_common_shift_and_unit_change_nothing() -> None:
    found = curve({128: 0.5, 4: 0.507, 1: 0.52}, 1e-6).adequate
    shifted = curve({128: 2.5, 4: 2.507, 1: 2.52}, 1e-6).adequate
    scaled = RankCurve(RANKS, 5.0, (Reading(128, 500, 1), Reading(4, 507, 1), Reading(1, 520, 1))).adequate
    assert list(shifted.values()) == pytest.approx(list(found.values()), abs=1e-6)
    assert list(scaled.values()) == pytest.approx(list(found.values()), abs=1e-6)


def test_choice_weighs_inferiority_against_doublings() -> None:
    flat = curve(dict.fromkeys(RANKS, 0.5))
    assert flat.choice(RANKS) == 1
    steep = curve({r: 0.5 + 0.3 * r**-0.65 for r in RANKS})
    assert steep.choice(RANKS) == 128


def test_reading_more_is_worth_most_where_the_choice_hinges_on_it() -> None:
    found = curve({128: 0.5, 16: 0.5005, 1: 0.54})
    gains = {r: found.gain(r, 1e-10, (1, 16, 128)) for r in RANKS}
    assert max(gains, key=gains.__getitem__) in (4, 8)
    assert gains[16] == pytest.approx(0, abs=1e-3)  # known already
    assert all(gain > -1e-2 for gain in gains.values())


def test_weights_are_finite_where_readings_are_exact_and_equal() -> None:
    values = list(curve(dict.fromkeys(RANKS, 0.5), 0.0).adequate.values())
    assert np.isfinite(values).all()
