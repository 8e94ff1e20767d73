"""Intervals of simple statistics. Knows arrays only."""

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student


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
    half = float(student.ppf(0.5 + level / 2, rows - 1)) * error
    return value, value - half, value + half
