"""Loss over rank and learning rate, from whatever was measured: one smooth surface with room for each rank's own.

y(r, u) = a + b·u + c·u² + g(r) + h(r, u) + noise, with u the learning rate's logarithm over the one that the law
expects at that rank, g and h Gaussian processes over log2 r and u. What a rank's neighbours say counts for it, and a
lucky run is pulled back to them. y is the logarithm of an NLL: there the spread of seeds is constant
(docs/evidence.md). The sizes of g, h and noise are summed over a grid. Knows numbers only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import log

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

Floats = npt.NDArray[np.float64]
Place = tuple[int, float]
"""(rank, logarithm of the learning rate over the expected one)."""

_RANK_SIZES = (0.003, 0.02, 0.12)
"""Sizes of g: what ranks differ by, in y."""
_SIZE_SD = log(3)
"""Prior of the size of g over the noise, log-normal about 1: where seeds change much, ranks do (docs/evidence.md)."""
_OWN_SHARES = (0.2, 1.0)
"""Sizes of h, in the curvature's unit: how differently ranks react to the learning rate."""
_NOISES = (0.0005, 0.0015, 0.004, 0.012, 0.04, 0.12)
_SMALLEST_NOISE = 1e-5
_NOISE_MEDIAN, _NOISE_SD = 0.01, 1.6
"""Prior of the noise's sd, log-normal: .1 % of the NLL on texts, 7 to 14 % on labels."""
_CURVATURES = (0.01, 0.04, 0.15)
"""Curvatures of y per squared e-fold of the learning rate: 0.015 on GSM8K, 0.13 on banking77."""
_RANK_REACH, _RATE_REACH = 3.0, 1.2
"""Doublings of the rank and e-folds of the rate over which g and h are alike."""
_NEAR = 1.5
"""e-folds around the best tried of a rank within which a parabola is believed."""
_FAR = 0.4
"""Height above a rank's best, in y, beyond which a run is past the edge of stability and says nothing of the bottom."""
_SLACK = 0.3
"""Share of a place's height above its rank's best: no parabola holds so far up, so the less it says of the bottom."""
_DRAWS = 200
_GRID = np.array(list(product(_RANK_SIZES, _OWN_SHARES, _CURVATURES, _NOISES)))


@dataclass(frozen=True, slots=True)
class Runs:
    """What was measured at one place."""

    place: Place
    values: tuple[float, ...]
    """y of each run, finite."""


@dataclass(frozen=True)
class Surface:
    """The posterior of y at `places`, given at least one run there or elsewhere."""

    runs: tuple[Runs, ...]
    places: tuple[Place, ...]
    noise: float | None = None
    """Sd of a run's y where it is known; None: to be inferred."""

    @cached_property
    def used(self) -> tuple[Runs, ...]:
        """Runs near the best of their rank."""
        best: dict[int, Runs] = {}
        for each in self.runs:
            r = each.place[0]
            if r not in best or np.mean(each.values) < np.mean(best[r].values):
                best[r] = each
        return tuple(
            each
            for each in self.runs
            if abs(each.place[1] - best[each.place[0]].place[1]) <= _NEAR
            and np.median(each.values) - np.mean(best[each.place[0]].values) <= _FAR
        )

    @cached_property
    def _posterior(self) -> tuple[Floats, Floats, Floats]:
        """Weights [components], means [components, places], covariances [components, places, places]."""
        used = self.used
        centre = float(np.mean([each.place[1] for each in used]))
        at, to = _coordinates([each.place for each in used], centre), _coordinates(self.places, centre)
        counts = np.array([len(each.values) for each in used], dtype=np.float64)
        means = np.array([np.mean(each.values) for each in used])
        level = float(np.average(means, weights=counts))
        y = means - level
        within = float(sum(np.var(each.values) * len(each.values) for each in used))
        spare = float(counts.sum() - len(counts))
        grid = _GRID if self.noise is None else _known_noise(self.noise)
        known = _covariance(at, at, grid)
        cross, own = _covariance(to, at, grid), _covariance(to, to, grid)
        slope, drift = grid[:, 2, None] * at[1] ** 2, grid[:, 2, None] * to[1] ** 2
        noise = grid[:, 3]
        lows: dict[int, float] = {}
        for each, mean in zip(used, means, strict=True):
            lows[each.place[0]] = min(lows.get(each.place[0], mean), mean)
        above = means - np.array([lows[each.place[0]] for each in used])
        total = known + (noise[:, None] ** 2 / counts + (_SLACK * above) ** 2)[:, :, None] * np.eye(len(y))
        lower = np.linalg.cholesky(total + 1e-12 * np.eye(len(y)))
        inverse = np.linalg.inv(lower)
        residual = y - slope
        white = np.einsum("kij,kj->ki", inverse, residual)
        logs = -(white**2).sum(axis=1) / 2 - np.log(np.diagonal(lower, axis1=1, axis2=2)).sum(axis=1)
        logs -= within / (2 * noise**2) + spare * np.log(noise)
        logs -= (np.log(noise / _NOISE_MEDIAN) / _NOISE_SD) ** 2 / 2
        logs -= (np.log(grid[:, 0] / noise) / _SIZE_SD) ** 2 / 2
        weights = np.exp(logs - logs.max())
        near = weights > 1e-4 * weights.max()
        gain = cross[near] @ np.swapaxes(inverse[near], 1, 2)
        found = level + drift[near] + np.einsum("kij,kj->ki", gain, white[near])
        spread = own[near] - gain @ np.swapaxes(gain, 1, 2)
        return weights[near] / weights[near].sum(), found, spread

    @cached_property
    def means(self) -> Floats:
        """[places]"""
        weights, means, _ = self._posterior
        return np.asarray(weights @ means)

    def below(self, place: int, other: int, margin: float) -> float:
        """Probability that y at `place` exceeds that at `other` by at most `margin` (indices of places)."""
        weights, means, spread = self._posterior
        mean = means[:, place] - means[:, other]
        variance = spread[:, place, place] + spread[:, other, other] - 2 * spread[:, place, other]
        return float(weights @ ndtr((margin - mean) / np.sqrt(np.maximum(variance, 1e-12))))

    def gains(self, place: int) -> Floats:
        """[places] by how much y is expected to lie below that at `place`, where it does."""
        weights, means, spread = self._posterior
        below = means[:, place, None] - means
        variances = np.diagonal(spread, axis1=1, axis2=2)
        sd = np.sqrt(
            np.maximum(variances + variances[:, place, None] - 2 * spread[:, place], _SMALLEST_NOISE**2)
        )
        z = below / sd
        return np.asarray(weights @ (below * ndtr(z) + sd * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)))

    def drop(self, count: int) -> tuple[float, float]:
        """How much farther the first of `count` places lies above the lowest of them than the next place above the
        lowest of the rest, in y: mean and sd, by draws of the posterior."""
        weights, means, spread = self._posterior
        values, vectors = np.linalg.eigh(spread)
        roots = vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]
        normal = np.random.default_rng(0).standard_normal((_DRAWS, len(self.places)))
        drawn = means[:, None, :] + normal @ np.swapaxes(roots, 1, 2)
        one, other = drawn[:, :, :count], drawn[:, :, count:]
        drops = one[:, :, 0] - one.min(axis=2) - other[:, :, 0] + other.min(axis=2)
        mean = float(weights @ drops.mean(axis=1))
        return mean, float(np.sqrt(weights @ ((drops - mean) ** 2).mean(axis=1)))


def _known_noise(sd: float) -> Floats:
    rows = np.unique(_GRID[:, :3], axis=0)
    return np.hstack([rows, np.full((len(rows), 1), max(sd, _SMALLEST_NOISE))])


def _coordinates(places: Sequence[Place], centre: float) -> tuple[Floats, Floats]:
    ranks = np.log2([float(r) for r, _ in places])
    return ranks, np.array([u for _, u in places]) - centre


def _covariance(one: tuple[Floats, Floats], other: tuple[Floats, Floats], grid: Floats) -> Floats:
    """[components, one, other]"""
    ranks = np.exp(-(((one[0][:, None] - other[0]) / _RANK_REACH) ** 2) / 2)
    rates = np.exp(-(((one[1][:, None] - other[1]) / _RATE_REACH) ** 2) / 2)
    u, w = one[1][:, None], other[1]
    sizes, shares, curvatures = (grid[:, i, None, None] for i in range(3))
    shared = 1.0 + (1.5 * curvatures) ** 2 * (u * w) + (0.5 * curvatures * u * w) ** 2
    return np.asarray(shared + sizes**2 * ranks + (shares * curvatures) ** 2 * ranks * rates)
