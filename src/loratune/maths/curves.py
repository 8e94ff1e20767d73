"""Rank curves: the fit L(r) = L∞ + c·r^-β, Kneedle's elbow, and optima read off measurements. Knows numbers only.

The elbow serves the strategy `guide` and for display only: a pure power law has no knee, and Kneedle's answer moves
with the ends of the grid.
"""

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import exp, isfinite, log
from typing import Any

import numpy as np

from loratune.values import NLL_MARGIN, Optimum

EXPONENT_MEAN = 0.65
EXPONENT_SD = 0.15
"""Prior of β: 0.70 at one learning rate, 0.58 at each rank's own, over 20 models of the Tulu-3 sweep."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerLaw:
    """A fitted rank curve; losses in the unit they were given in."""

    limit: float
    """L∞, the loss at infinite rank."""
    scale: float
    """c ≥ 0, the loss that rank 1 adds."""
    exponent: float
    """β."""
    residual: float
    """Root mean square of the residuals."""

    def predict(self, r: float) -> float:
        return float(self.limit + self.scale * r**-self.exponent)

    def excess(self, r: float, reference: float) -> float:
        """Expected loss of rank r above that of the reference rank."""
        return self.predict(r) - self.predict(reference)


def fit_power_law(
    ranks: Sequence[float], losses: Sequence[float], standard_errors: Sequence[float] | None = None
) -> PowerLaw:
    """Maximum a posteriori over β in [0.2, 1.4]; L∞ and c ≥ 0 by weighted least squares at each β.

    With two ranks β is the prior's mean; with one the curve is flat. Where no standard errors are given,
    1e-3 of the loss's size is assumed, which lets the prior settle β until four or more ranks disagree.
    Raises `ValueError` where nothing is given or a loss is not finite.
    """
    x = np.asarray(ranks, dtype=np.float64)
    y = np.asarray(losses, dtype=np.float64)
    if len(x) == 0 or len(x) != len(y) or not np.isfinite(y).all():
        raise ValueError("A power law needs one finite loss for each rank, and at least one rank.")
    if standard_errors is None:
        sd = np.full_like(y, 1e-3 * max(float(np.abs(y).mean()), 1e-12))
    else:
        sd = np.maximum(np.asarray(standard_errors, dtype=np.float64), 1e-12)
    exponents = np.linspace(0.2, 1.4, 121)
    basis = x[None, :] ** -exponents[:, None]
    weights = 1 / sd**2
    basis_mean, y_mean = np.average(basis, axis=1, weights=weights), np.average(y, weights=weights)
    spread = (weights * (basis - basis_mean[:, None]) ** 2).sum(axis=1)
    covariance = (weights * (basis - basis_mean[:, None]) * (y - y_mean)).sum(axis=1)
    scales = np.maximum(np.divide(covariance, spread, out=np.zeros_like(spread), where=spread > 0), 0.0)
    limits = y_mean - scales * basis_mean
    residuals = y - limits[:, None] - scales[:, None] * basis
    misfit = ((residuals / sd) ** 2).sum(axis=1) + ((exponents - EXPONENT_MEAN) / EXPONENT_SD) ** 2
    best = int(np.argmin(misfit))
    return PowerLaw(
        limit=float(limits[best]),
        scale=float(scales[best]),
        exponent=float(exponents[best]),
        residual=float(np.sqrt((residuals[best] ** 2).mean())),
    )


def elbow(ranks: Sequence[int], values: Sequence[float], *, larger_is_better: bool) -> int | None:
    """The rank at the elbow of values against rank (linear axis, sensitivity 1); None where there is none.

    `ranks` ascending. Fewer than three points have no elbow.
    """
    if len(ranks) < 3:
        return None
    located = _kneedle()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # kneed warns where it finds no knee; None says the same
        found = located(
            list(ranks),
            list(values),
            S=1.0,
            curve="concave" if larger_is_better else "convex",
            direction="increasing" if larger_is_better else "decreasing",
        )
    return None if found.knee is None else int(found.knee)


@cache
def _kneedle() -> Any:
    """kneed's `KneeLocator`, without the pyplot that it imports for plots of its own: a second of every start."""
    pyplot = "matplotlib.pyplot"
    absent = pyplot not in sys.modules
    if absent:
        sys.modules[pyplot] = None  # type: ignore[assignment]
    try:
        from kneed import KneeLocator
    finally:
        if absent:
            del sys.modules[pyplot]
    return KneeLocator


_FEWEST_RANKS = 3
_SMALLEST_REFERENCE = 16
"""A rank curve that ends below says nothing about the rank that is needed."""


def best_rate(rates: Sequence[float], losses: Sequence[float]) -> tuple[float, float, bool]:
    """Minimum of measured losses over the learning rate: (rate, loss there as measured, whether inside).

    Inside, the rate is the vertex of the parabola through the best and its neighbours in log rate and log
    loss, at most half a step from the best; at an edge, or beside a diverged (infinite) neighbour, it is
    the best one tried. `rates` ascend. Raises `ValueError` where no loss is finite.
    """
    finite = [i for i, value in enumerate(losses) if isfinite(value)]
    if not finite:
        raise ValueError("A curve needs a finite loss to have a best learning rate.")
    best = min(finite, key=lambda i: losses[i])
    if not 0 < best < len(rates) - 1:
        return rates[best], losses[best], False
    around = slice(best - 1, best + 2)
    if not all(0 < value < float("inf") for value in losses[around]):
        return rates[best], losses[best], True
    x = [log(rate) for rate in rates[around]]
    a, b, _ = np.polyfit(x, [log(value) for value in losses[around]], 2)
    if a <= 0:
        return rates[best], losses[best], True
    vertex = min(max(-b / (2 * a), (x[0] + x[1]) / 2), (x[1] + x[2]) / 2)
    return exp(vertex), losses[best], True


def rank_curve(optima: Sequence[Optimum]) -> dict[int, float]:
    """NLL by ascending rank at each one's own learning rate, at the batch size at which most ranks were measured.

    Empty with fewer than three ranks, or where the largest is below 16.
    """
    by_batch: dict[int, dict[int, float]] = {}
    for each in optima:
        if isfinite(each.nll):
            ranks = by_batch.setdefault(each.batch_size, {})
            ranks[each.r] = min(each.nll, ranks.get(each.r, each.nll))
    curve = max(by_batch.values(), key=len, default={})
    enough = len(curve) >= _FEWEST_RANKS and max(curve) >= _SMALLEST_REFERENCE
    return dict(sorted(curve.items())) if enough else {}


def needed_rank(optima: Sequence[Optimum], margin: float = NLL_MARGIN) -> float | None:
    """The smallest rank (a real number) within `margin` nats of the largest measured, by the power law.

    None without a `rank_curve`.
    """
    curve = rank_curve(optima)
    if not curve:
        return None
    largest = max(curve)
    law = fit_power_law(list(curve), list(curve.values()))
    excess = law.scale * largest**-law.exponent + margin
    return min(max((law.scale / excess) ** (1 / law.exponent), 1.0), float(largest)) if law.scale else 1.0
