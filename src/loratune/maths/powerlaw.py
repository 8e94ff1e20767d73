"""The rank curve L(r) = L∞ + c·r^-β, fitted with a prior on β. Knows nothing of trials."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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

    def smallest_within(self, ranks: Sequence[int], margin: float) -> int:
        """The smallest of `ranks` whose expected loss lies within `margin` of the largest one's."""
        return next(r for r in sorted(ranks) if self.excess(r, max(ranks)) <= margin)


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
        raise ValueError("A power law needs as many finite losses as ranks, and at least one.")
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
