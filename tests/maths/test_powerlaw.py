"""The rank curve's fit against planted curves."""

import numpy as np
import pytest

from loratune.maths.curves import fit_power_law

RANKS = (1, 2, 4, 8, 16, 32, 64, 128)


@pytest.mark.parametrize("exponent", [0.5, 0.65, 0.9])
def test_recovers_a_planted_curve(exponent: float) -> None:
    losses = [0.5 + 0.04 * r**-exponent for r in RANKS]
    law = fit_power_law(RANKS, losses, [1e-6] * len(RANKS))
    assert law.exponent == pytest.approx(exponent, abs=0.011)
    assert law.limit == pytest.approx(0.5, abs=1e-4)
    assert law.excess(4, 128) == pytest.approx(losses[2] - losses[7], abs=1e-4)


def test_two_points_use_the_priors_exponent_and_pass_through_both() -> None:
    law = fit_power_law([4, 64], [0.52, 0.50])
    assert law.exponent == pytest.approx(0.65)
    assert (law.predict(4), law.predict(64)) == (pytest.approx(0.52), pytest.approx(0.50))


def test_noise_pulls_the_exponent_to_the_prior() -> None:
    generator = np.random.default_rng(0)
    losses = [0.5 + 0.04 * r**-1.2 + 0.05 * generator.standard_normal() for r in RANKS]
    assert fit_power_law(RANKS, losses, [0.05] * len(RANKS)).exponent == pytest.approx(0.65, abs=0.1)


def test_a_curve_that_rises_with_rank_is_flat() -> None:
    law = fit_power_law(RANKS, [0.5 + 0.001 * r for r in RANKS])
    assert law.scale == 0
    assert all(law.excess(r, max(RANKS)) == 0 for r in RANKS)


def test_the_excess_of_a_rank_is_the_truths() -> None:
    law = fit_power_law(RANKS, [0.5 + 0.04 * r**-0.65 for r in RANKS])
    for r in RANKS:
        assert law.excess(r, 128) == pytest.approx(0.04 * (r**-0.65 - 128**-0.65), abs=1e-6)


@pytest.mark.parametrize("losses", [[], [float("nan")], [float("inf")]])
def test_refuses_what_is_not_finite(losses: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        fit_power_law([4][: len(losses)], losses)
