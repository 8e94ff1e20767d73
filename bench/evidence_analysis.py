"""What a grid of runs says: best learning rates, exponents, seed noise, the rank that was needed.

Knows the lines of `bench/results/evidence_grid.csv` and per-example losses; neither figures nor documents. Intervals of
learning rates come from a parametric bootstrap: every cell's loss is drawn anew with the seeds' own spread, and the
optimum is read off again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import exp, inf, isfinite, log

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

from loratune.maths.curves import best_rate
from loratune.maths.noninferiority import Comparison, SeedNoise, compare_nll, pool_seed_noise, row_variance
from loratune.values import NLL_MARGIN

Floats = npt.NDArray[np.float64]
DRAWS = 1000
LEVEL = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A trial at its end."""

    dataset: str
    rows: int
    rank: int
    lora_alpha: float
    learning_rate: float
    batch_size: int
    seed: int
    epochs: float
    nll: float
    """Infinite where it diverged."""
    exact_match: float

    @property
    def doubled(self) -> bool:
        """Whether alpha = 2r."""
        return self.lora_alpha == 2 * self.rank


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """What a curve over the learning rate belongs to."""

    dataset: str
    rows: int
    rank: int
    lora_alpha: float
    batch_size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """An estimate with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def told(self, digits: int = 2) -> str:
        return f"{self.value:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


@dataclass(frozen=True)
class Curve:
    """Losses over the learning rate at one place."""

    place: Place
    losses: Mapping[float, Mapping[int, float]]
    """By learning rate and seed."""

    @cached_property
    def rates(self) -> list[float]:
        return sorted(self.losses)

    @cached_property
    def means(self) -> list[float]:
        """[rates] infinite where a seed diverged."""
        return [float(np.mean(list(self.losses[rate].values()))) for rate in self.rates]

    @property
    def usable(self) -> bool:
        return any(map(isfinite, self.means))

    @cached_property
    def best(self) -> tuple[float, float, bool]:
        """As `best_rate`."""
        return best_rate(self.rates, self.means)

    @property
    def tried(self) -> float:
        """The learning rate of the best cell."""
        return self.rates[int(np.argmin(self.means))]

    def drawn(self, sd: float, random: np.random.Generator) -> list[float]:
        """[rates] means with noise: `sd` is that of one run's ln NLL."""
        counts = np.array([len(self.losses[rate]) for rate in self.rates])
        noise = np.exp(random.normal(0.0, sd, len(counts)) / np.sqrt(counts))
        return [mean * float(factor) for mean, factor in zip(self.means, noise, strict=True)]


class Grid:
    """All runs, as curves."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self.runs = list(runs)
        found: dict[Place, dict[float, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
        for run in self.runs:
            place = Place(
                dataset=run.dataset,
                rows=run.rows,
                rank=run.rank,
                lora_alpha=run.lora_alpha,
                batch_size=run.batch_size,
            )
            found[place][run.learning_rate][run.seed] = run.nll
        self.curves = {place: Curve(place, losses) for place, losses in found.items()}
        self.curves = {place: curve for place, curve in self.curves.items() if curve.usable}

    @property
    def tasks(self) -> list[tuple[str, int]]:
        """(dataset, rows), in the order in which they were measured."""
        return list(dict.fromkeys((run.dataset, run.rows) for run in self.runs))

    def usual_batch(self, dataset: str) -> int:
        """The batch size at which most runs of a dataset were made."""
        sizes = [run.batch_size for run in self.runs if run.dataset == dataset]
        return max(set(sizes), key=sizes.count)

    def by_rank(self, dataset: str, rows: int, alpha: float | None = None) -> list[Curve]:
        """Curves at alpha = 2r, or at one alpha, by rank."""
        batch = self.usual_batch(dataset)
        found = [
            curve
            for place, curve in self.curves.items()
            if (place.dataset, place.rows, place.batch_size) == (dataset, rows, batch)
            and place.lora_alpha == (2 * place.rank if alpha is None else alpha)
        ]
        return sorted(found, key=lambda curve: curve.place.rank)

    def by_batch(self, dataset: str, rows: int, rank: int) -> list[Curve]:
        """Curves at one rank and alpha = 2r, by batch size."""
        found = [
            curve
            for place, curve in self.curves.items()
            if (place.dataset, place.rows, place.rank, place.lora_alpha) == (dataset, rows, rank, 2 * rank)
        ]
        return sorted(found, key=lambda curve: curve.place.batch_size)

    def constant_alphas(self, dataset: str, rows: int) -> list[float]:
        """Alphas at which more than one rank was measured."""
        ranks: dict[float, set[int]] = defaultdict(set)
        for place in self.curves:
            if (place.dataset, place.rows) == (dataset, rows):
                ranks[place.lora_alpha].add(place.rank)
        return [alpha for alpha, found in ranks.items() if len(found) > 1]

    def seed_noise(self, dataset: str, rows: int) -> SeedNoise:
        """Of one run's NLL, pooled over each rank's best learning rate."""
        return pool_seed_noise([list(c.losses[c.tried].values()) for c in self.by_rank(dataset, rows)])

    def relative_noise(self, dataset: str, rows: int) -> float:
        """Sd of one run's ln NLL, pooled alike; over all tasks where this one repeats nothing."""
        own = _pooled_logs(self.by_rank(dataset, rows))
        everywhere = [curve for task in self.tasks for curve in self.by_rank(*task)]
        noise = own if own.known else _pooled_logs(everywhere)
        return float(noise.variance**0.5)


def _pooled_logs(curves: Sequence[Curve]) -> SeedNoise:
    repeats = [list(curve.losses[curve.tried].values()) for curve in curves]
    return pool_seed_noise([[log(value) for value in group] for group in repeats if min(group) > 0])


def slope(
    curves: Sequence[Curve],
    size: Callable[[Curve], float],
    sd: float,
    *,
    seed: int = 0,
    only_inside: bool = True,
) -> tuple[Interval, int] | None:
    """Exponent of the best learning rate in `size`, with its bootstrap interval, and the curves it rests on.

    `sd` is that of one run's ln NLL. Curves whose best rate is the lowest or highest tried are left out unless
    `only_inside` is false. None with fewer than two curves.
    """
    used = [curve for curve in curves if curve.best[2] or not only_inside]
    if len(used) < 2:
        return None
    x = np.log([size(curve) for curve in used])
    value = _exponent(x, [curve.best[0] for curve in used])
    random = np.random.default_rng(seed)
    draws = [
        _exponent(x, [best_rate(curve.rates, curve.drawn(sd, random))[0] for curve in used])
        for _ in range(DRAWS)
    ]
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value=value, low=float(low), high=float(high)), len(used)


def _exponent(x: Floats, rates: Sequence[float]) -> float:
    return float(np.polyfit(x, np.log(rates), 1)[0])


def ratio_exponent(one: Curve, other: Curve, change: float, sd: float, *, seed: int = 0) -> Interval:
    """ln(best rate of other / of one) / ln(change)."""
    random = np.random.default_rng(seed)

    def found(first: Sequence[float], second: Sequence[float]) -> float:
        return log(best_rate(other.rates, second)[0] / best_rate(one.rates, first)[0]) / log(change)

    draws = [found(one.drawn(sd, random), other.drawn(sd, random)) for _ in range(DRAWS)]
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value=found(one.means, other.means), low=float(low), high=float(high))


def across(values: Sequence[float]) -> Interval | None:
    """Mean of one value per task, t interval: what a new task is to be expected to differ from. None below two."""
    if len(values) < 2:
        return None
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / len(values) ** 0.5
    half = float(student.ppf((1 + LEVEL) / 2, len(values) - 1)) * error
    return Interval(value=mean, low=mean - half, high=mean + half)


@dataclass(frozen=True, kw_only=True, slots=True)
class RankTest:
    """A rank at its own best rate against the largest at its own."""

    rank: int
    rate: float
    inside: bool
    nll: float
    exact_match: float
    at_shared_rate: float
    """NLL at the largest rank's best cell's learning rate; infinite where it was not tried there or diverged."""
    comparison: Comparison | None
    """None for the largest itself, and without losses of single rows."""


Examples = Mapping[tuple[str, int, int, float, int, int], Floats]
"""[rows] NLL sums by (dataset, rows, rank, learning rate, batch size, seed), at alpha = 2r."""


def rank_tests(
    grid: Grid, dataset: str, rows: int, examples: Examples, weights: Floats, margin: float = NLL_MARGIN
) -> list[RankTest]:
    """Every rank of a task, the largest first; differences in nats per supervised token, rows paired."""
    curves = grid.by_rank(dataset, rows)[::-1]
    batch = grid.usual_batch(dataset)
    matches = {
        (run.rank, run.learning_rate, run.seed): run.exact_match
        for run in grid.runs
        if (run.dataset, run.rows, run.batch_size) == (dataset, rows, batch) and run.doubled
    }

    def losses(curve: Curve) -> Floats | None:
        keys = [
            (dataset, rows, curve.place.rank, curve.tried, batch, seed) for seed in curve.losses[curve.tried]
        ]
        return np.stack([examples[key] for key in keys]) if all(key in examples for key in keys) else None

    own = [losses(curve) for curve in curves]
    noise = grid.seed_noise(dataset, rows)
    repeated = [each for each in own if each is not None and len(each) > 1]
    if repeated and noise.known:
        parts = [row_variance(each, weights) for each in repeated]
        noise = SeedNoise(variance=noise.variance, degrees=noise.degrees, rows=float(np.mean(parts)))
    found = []
    for curve, mine in zip(curves, own, strict=True):
        compared = None
        if curve is not curves[0] and mine is not None and own[0] is not None:
            compared = compare_nll(mine, own[0], weights, noise, margin)
        seeds = curve.losses[curve.tried]
        shared = curve.losses.get(curves[0].tried, {})
        found.append(
            RankTest(
                rank=curve.place.rank,
                rate=curve.best[0],
                inside=curve.best[2],
                nll=curve.best[1],
                exact_match=float(np.mean([matches[curve.place.rank, curve.tried, seed] for seed in seeds])),
                at_shared_rate=float(np.mean(list(shared.values()))) if shared else inf,
                comparison=compared,
            )
        )
    return found


def smallest_adequate(tests: Sequence[RankTest]) -> int:
    """Downwards from the largest, stopping at the first that is not shown adequate."""
    found = tests[0].rank
    for test in tests[1:]:
        if test.comparison is None or test.comparison.verdict != "adequate":
            break
        found = test.rank
    return found


def factor(values: Sequence[float]) -> float:
    """exp of the mean |ln|, as a prior's error is told."""
    return exp(float(np.mean(np.abs(values)))) if len(values) else 1.0
