"""How probably each rank is adequate, by all that was measured: a power law with room for what it misses.

f(r) = L∞ + c·r^-β + δ_r with δ_r ~ N(0, τ²); a reading is f(r) plus noise of known variance. L∞ is flat, β has
the power law's prior, c is 0 or log-normal around four margins, τ is a twentieth, a fifth or one margin. β, c and
τ are summed over a grid; the rest is Gaussian.
It says what to measure next and which rank to take where a test cannot. It claims nothing and knows no trials.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from math import log2

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from loratune.maths.powerlaw import EXPONENT_MEAN, EXPONENT_SD

Floats = npt.NDArray[np.float64]

DOUBLINGS = 8.0
"""An inferior rank is as bad as a rank this many doublings larger than needed."""
_SCALE_MEDIAN, _SCALE_SD = 4.0, 1.5
"""Of c in margins, log-normal: 2 to 8 on public sweeps and banking77, 20 and more where a task is learnt late."""
_NO_EFFECT = 0.05
"""Prior probability that the rank does not matter at all."""
_EXPONENTS = np.linspace(0.2, 1.4, 9)
_SCALES = np.concatenate([[0.0], np.geomspace(0.1, 400.0, 25)])
_MISFITS = (0.05, 0.2, 1.0)
_LEVEL_SD = 1e3
"""Of the flat prior of L∞ around the readings' mean, in margins and noise sds."""
QUANTILES = 10
"""Of a reading's prediction, at which its consequences are weighed."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A rank's measured mean loss and the variance of its noise."""

    r: int
    loss: float
    variance: float


@dataclass(frozen=True)
class RankCurve:
    """The posterior of f(r) - f(reference), given the readings. At least one reading; a positive margin."""

    candidates: tuple[int, ...]
    """Ascending; the last is the reference."""
    margin: float
    readings: tuple[Reading, ...]

    @cached_property
    def _mixture(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Weights [components]; means of f, variances of f(r) - f(reference) and of f(r) [components, ranks]."""
        ranks = np.asarray(self.candidates, dtype=np.float64)
        at = [self.candidates.index(reading.r) for reading in self.readings]
        losses = np.array([reading.loss for reading in self.readings])
        noise = np.array([reading.variance for reading in self.readings])
        centre = losses.mean()
        curves = self.margin * _SCALES[:, None, None] * ranks ** -_EXPONENTS[None, :, None]
        curves = centre + curves.reshape(-1, len(ranks))
        prior = _log_prior().reshape(-1)
        level = (_LEVEL_SD * (self.margin + float(np.sqrt(noise.max())) + float(np.ptp(losses)))) ** 2
        logs, means, variances, own = [], [], [], []
        for misfit in _MISFITS:
            known = (misfit * self.margin) ** 2 * np.eye(len(ranks)) + level
            total = known[np.ix_(at, at)] + np.diag(noise)
            gain = np.linalg.solve(total, known[at]).T
            residuals = losses - curves[:, at]
            weighted = np.linalg.solve(total, residuals.T).T
            logs.append(prior - 0.5 * ((residuals * weighted).sum(axis=1) + np.linalg.slogdet(total)[1]))
            means.append(curves + residuals @ gain.T)
            covariance = known - gain @ known[at]
            diagonal = np.diagonal(covariance)
            spread = np.maximum(diagonal + diagonal[-1] - 2 * covariance[-1], 0.0)
            variances.append(np.broadcast_to(spread, curves.shape))
            own.append(np.broadcast_to(np.maximum(diagonal, 0.0), curves.shape))
        log_weights = np.concatenate(logs)
        weights = np.exp(log_weights - log_weights.max())
        weights /= weights.sum()
        return weights, np.concatenate(means), np.concatenate(variances), np.concatenate(own)

    def _predicted(self, r: int, variance: float) -> list[float]:
        """Readings of rank r at equally probable quantiles of their distribution."""
        weights, means, _, own = self._mixture
        index = self.candidates.index(r)
        near = weights > 1e-6  # most components have none
        weights, centre = weights[near], means[near, index]
        sd = np.sqrt(own[near, index] + variance)
        at = np.linspace((centre - 4 * sd).min(), (centre + 4 * sd).max(), 400)
        below = ndtr((at[:, None] - centre) / sd) @ weights
        return [float(x) for x in np.interp((np.arange(QUANTILES) + 0.5) / QUANTILES, below, at)]

    @cached_property
    def adequate(self) -> dict[int, float]:
        """Probability that a rank's loss exceeds the reference's by at most the margin."""
        weights, means, variances, _ = self._mixture
        excess = means - means[:, -1:]
        sd = np.maximum(np.sqrt(variances), 1e-9 * self.margin)
        found = weights @ ndtr((self.margin - excess) / sd)
        found[-1] = 1.0
        return dict(zip(self.candidates, map(float, found), strict=True))

    def expected_loss(self, r: int) -> float:
        """Of taking that rank, in the worth of one inferior rank."""
        return 1 - self.adequate[r] + log2(r) / DOUBLINGS

    def choice(self, allowed: Collection[int]) -> int:
        """The rank with the smallest expected loss; of equal ones the smallest."""
        return min(sorted(allowed), key=self.expected_loss)

    def gain(self, r: int, variance: float, allowed: Collection[int]) -> float:
        """How much another reading of rank r, with noise of that variance, is expected to lower the loss.

        The reading is drawn from its prediction (at its quantiles); the rank may be taken afterwards, and
        before it any of `allowed`.
        """
        return _gain(self, r, variance, tuple(sorted(allowed)))


@lru_cache(maxsize=4096)  # a search is replayed from its start for every request
def _gain(curve: RankCurve, r: int, variance: float, allowed: tuple[int, ...]) -> float:
    after = 0.0
    for loss in curve._predicted(r, variance):
        later = RankCurve(curve.candidates, curve.margin, (*curve.readings, Reading(r, loss, variance)))
        after += later.expected_loss(later.choice({*allowed, r})) / QUANTILES
    return curve.expected_loss(curve.choice(allowed)) - after


@cache
def _log_prior() -> Floats:
    """[scales, exponents]."""
    exponents = -(((_EXPONENTS - EXPONENT_MEAN) / EXPONENT_SD) ** 2) / 2
    exponents -= np.log(np.exp(exponents).sum())
    scales = -((np.log(_SCALES[1:] / _SCALE_MEDIAN) / _SCALE_SD) ** 2) / 2
    scales += np.log(1 - _NO_EFFECT) - np.log(np.exp(scales).sum())
    scales = np.concatenate([[np.log(_NO_EFFECT)], scales])
    return np.asarray(scales[:, None] + exponents[None, :])
