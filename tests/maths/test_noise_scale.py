"""The gradient noise scale: exact on exact moments, unbiased on draws, honest about precision."""

from math import inf

import numpy as np
import pytest

from loratune.maths.noise_scale import noise_scale


def squared_norms(
    steps: int, *, signal: float, variance: float, dimensions: int, seed: int
) -> tuple[list[float], list[float]]:
    """Gradients of 8 small batches of 2 rows a step: mean of norm `signal`, per-row covariance variance·I."""
    random = np.random.default_rng(seed)
    mean = np.zeros(dimensions)
    mean[0] = signal
    small, large = [], []
    for _ in range(steps):
        gradients = mean + random.normal(0, (variance / 2) ** 0.5, (8, dimensions))
        small.append(float((gradients**2).sum(axis=1).mean()))
        large.append(float((gradients.mean(axis=0) ** 2).sum()))
    return small, large


def test_exact_moments_give_the_exact_scale() -> None:
    """‖g_B‖² = |G|² + trΣ/B with |G|² = 4 and trΣ = 200: 50 rows."""
    found = noise_scale([4 + 200 / 2] * 6, [4 + 200 / 16] * 6, small_rows=2, large_rows=16)
    assert found.rows == pytest.approx(50)
    assert (found.low, found.high) == (pytest.approx(50), pytest.approx(50))


def test_draws_from_a_known_covariance_are_covered() -> None:
    """trΣ = 500·0.04 = 20, |G|² = 0.25: 80 rows."""
    hits = 0
    estimates = []
    for seed in range(60):
        small, large = squared_norms(40, signal=0.5, variance=0.04, dimensions=500, seed=seed)
        found = noise_scale(small, large, small_rows=2, large_rows=16)
        hits += found.low <= 80 <= found.high
        estimates.append(found.rows)
    assert np.median(estimates) == pytest.approx(80, rel=0.05)
    assert hits >= 48  # of 54 expected at 90 %


def test_a_mean_that_cannot_be_told_from_zero_is_an_infinite_scale() -> None:
    highs = []
    for seed in range(20):
        small, large = squared_norms(8, signal=0.0, variance=1.0, dimensions=50, seed=seed)
        highs.append(noise_scale(small, large, small_rows=2, large_rows=16).high)
    assert highs.count(inf) >= 12
    assert noise_scale([2.0] * 4, [0.1] * 4, small_rows=2, large_rows=16).rows == inf


@pytest.mark.parametrize(("small", "large"), [([1.0] * 3, [1.0] * 3), ([1.0] * 5, [1.0] * 4)])
def test_too_few_steps_are_refused(small: list[float], large: list[float]) -> None:
    with pytest.raises(ValueError, match="at least 4"):
        noise_scale(small, large, small_rows=2, large_rows=16)
    with pytest.raises(ValueError, match="below large_rows"):
        noise_scale([1.0] * 4, [1.0] * 4, small_rows=2, large_rows=2)
