"""Two looks at one comparison, fixed in advance: what the first may spend, and bounds that know of it.

The first look decides only beyond an O'Brien-Fleming bound (Lan and DeMets' spending function), so that looking
twice does not inflate the error. Bounds at the second look use the stagewise ordering of outcomes (Tsiatis, Rosner
and Mehta 1984): stopped low < went on < stopped high; they cover at their nominal level whichever look was the
last, and a bound beyond the margin is the test's rejection. At the first look that bound is the plain one.
Estimates at the looks are jointly normal with correlation se₂/se₁ (independent increments); t quantiles are mapped
to normal ones by their probability. Knows numbers only.
"""

from dataclasses import dataclass
from math import isfinite, pi, sqrt

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri, stdtr

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(40)
_FAR = 8.0
"""Normal quantile beyond which nothing is left."""


def first_look_alpha(share: float, alpha: float) -> float:
    """What a look at `share` of the planned runs, in (0, 1], may spend of the one-sided error `alpha`."""
    return float(2 * ndtr(ndtri(alpha / 2) / sqrt(share)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """An estimate at one look."""

    difference: float
    standard_error: float
    degrees: float

    def normal(self, at: float, theta: float) -> float:
        """The normal quantile with the probability of an estimate below `at` when the truth is `theta`."""
        if self.standard_error == 0:
            return _FAR if at >= theta else -_FAR
        quantile = (at - theta) / self.standard_error
        if isfinite(self.degrees):
            quantile = float(ndtri(stdtr(self.degrees, quantile)))
        return min(max(quantile, -_FAR), _FAR)


def upper_bound(first: Look, low: float, high: float, second: Look, level: float) -> float:
    """One-sided upper bound at the second look, after the first estimate lay between `low` and `high`."""
    correlation = min(second.standard_error / first.standard_error, 0.999) if first.standard_error else 0.0

    def as_low(theta: float) -> float:
        """Probability of an outcome as low as the observed one, less the error allowed."""
        start, end = first.normal(low, theta), first.normal(high, theta)
        z = start + (end - start) * (_NODES + 1) / 2
        scale = sqrt(1 - correlation**2)
        later = ndtr((second.normal(second.difference, theta) - correlation * z) / scale)
        went_on = float((_WEIGHTS * np.exp(-z * z / 2) * later).sum()) * (end - start) / sqrt(8 * pi)
        return float(ndtr(start)) + went_on - (1 - level)

    step = second.standard_error
    if step == 0:
        return second.difference
    lowest, highest = second.difference - step, second.difference + step
    while as_low(lowest) < 0:
        lowest -= 4 * step
    while as_low(highest) > 0:
        highest += 4 * step
    return float(brentq(as_low, lowest, highest, xtol=1e-6 * step))


def lower_bound(first: Look, low: float, high: float, second: Look, level: float) -> float:
    """The mirror image of `upper_bound`."""
    return -upper_bound(_mirrored(first), -high, -low, _mirrored(second), level)


def _mirrored(look: Look) -> Look:
    return Look(difference=-look.difference, standard_error=look.standard_error, degrees=look.degrees)
