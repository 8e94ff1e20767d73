"""The gradient noise scale from gradients of two batch sizes at the same weights. Knows squared norms only."""

from collections.abc import Sequence
from math import inf

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from loratune.values import NoiseScale


def ratio_interval(
    sums: npt.NDArray[np.float64], weights: npt.NDArray[np.float64], level: float = 0.95
) -> tuple[float, float, float]:
    """(Σ sums / Σ weights, low, high) over rows drawn at random, by linearisation (Cochran, chapter 6).

    Args:
        sums, weights: [rows ≥ 2], such as a row's summed NLL and its supervised tokens.

    Raises `ValueError` for fewer than two rows.
    """
    rows = len(sums)
    if rows < 2 or len(weights) != rows:
        raise ValueError(f"An interval needs at least two rows with their weights, got {rows}.")
    value = float(sums.sum() / weights.sum())
    residuals = sums - value * weights
    error = float(np.sqrt(rows / (rows - 1) * (residuals**2).sum()) / weights.sum())
    half = float(stdtrit(rows - 1, 0.5 + level / 2)) * error
    return value, value - half, value + half


_RESAMPLES = 2000
_FEWEST_STEPS = 4


def noise_scale(
    small: Sequence[float], large: Sequence[float], *, small_rows: float, large_rows: float, seed: int = 0
) -> NoiseScale:
    """tr(Σ)/|G|² in rows, by the ratio of running means (McCandlish et al., 1812.06162, appendix A.1).

    |G|² = (B·‖g_B‖² - b·‖g_b‖²)/(B - b) and tr Σ = (‖g_b‖² - ‖g_B‖²)/(1/b - 1/B), each averaged over the steps
    before they are divided: the mean of the steps' ratios would be biased. The interval is 90 %, by resampling
    steps. Where the mean of |G|² is not above zero the scale is infinite: more rows would be needed.

    Args:
        small: [steps] mean ‖g_b‖² over the small batches of a step; large: [steps] ‖g_B‖² of all its rows.
        small_rows, large_rows: b < B.

    Raises `ValueError` for other batch sizes or fewer than four steps.
    """
    if not 0 < small_rows < large_rows:
        raise ValueError(f"small_rows must be below large_rows, got {small_rows} and {large_rows}.")
    little, big = np.asarray(small, np.float64), np.asarray(large, np.float64)
    if len(little) != len(big) or len(little) < _FEWEST_STEPS:
        raise ValueError(f"A noise scale needs at least {_FEWEST_STEPS} steps of both, got {len(little)}.")
    signal = (large_rows * big - small_rows * little) / (large_rows - small_rows)
    noise = (little - big) / (1 / small_rows - 1 / large_rows)
    drawn = np.random.default_rng(seed).integers(0, len(little), (_RESAMPLES, len(little)))
    ratios = _ratio(noise[drawn].mean(axis=1), signal[drawn].mean(axis=1))
    low, high = np.quantile(ratios, [0.05, 0.95], method="nearest")
    (value,) = _ratio(noise.mean(keepdims=True), signal.mean(keepdims=True))
    return NoiseScale(rows=float(value), low=float(low), high=float(high), steps=len(little))


def _ratio(noise: npt.NDArray[np.float64], signal: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Noise over signal: 0 without noise, infinite without signal."""
    found = np.divide(noise, signal, out=np.full_like(noise, inf), where=signal > 0)
    return np.maximum(found, 0.0)
