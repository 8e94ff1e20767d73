"""Paired comparison of two settings: adequate, inferior or undecided, with its bounds.

Variance model: σ_item²/n + σ_seed²/k per side, σ_seed pooled over all repeated trials of the study, t with
Satterthwaite's degrees of freedom. Seeds are never bootstrapped (two seeds would cover 65 %).
Knows arrays, not trials.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import inf, isfinite, sqrt

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri, stdtrit

from loratune.maths.looks import Look, first_look_alpha, lower_bound, upper_bound

Floats = npt.NDArray[np.float64]
ONE_SIDED = 0.95
BOOTSTRAPS = 1000
FEWEST_DEGREES = 2
"""Degrees of freedom of the seed noise from which something is claimed: with one, a t interval is 13 errors wide."""


class Verdict(StrEnum):
    ADEQUATE = "adequate"
    INFERIOR = "inferior"
    UNDECIDED = "undecided"


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedNoise:
    """Variance of one run's loss from seed to seed."""

    variance: float
    degrees: float
    """Degrees of freedom; infinite for an assumed value, 0 where nothing was repeated."""
    rows: float = 0.0
    """The part of it that comes from the rows: a paired comparison has that in its item variance already."""

    @property
    def known(self) -> bool:
        return self.degrees > 0

    @property
    def enough(self) -> bool:
        """Whether it is known well enough to claim something."""
        return self.degrees >= FEWEST_DEGREES


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """The loss of a candidate minus that of the reference, and how sure that is."""

    difference: float
    """Positive: the candidate is worse."""
    standard_error: float
    degrees: float
    margin: float
    seeds_measured: bool = True
    """False where seed noise is neither measured well enough nor assumed: nothing can be concluded then."""
    level: float = ONE_SIDED
    """One-sided level at which this look decides; above 0.95 at the first of two looks."""
    earlier: "Comparison | None" = None
    """The first of two looks, where this is the second."""

    def moved(self, by: float, sd: float) -> "Comparison":
        """This comparison with something added to the difference that is known up to `sd`, as of many runs."""
        total = self.standard_error**2 + sd**2
        share = self.standard_error**4 / self.degrees if isfinite(self.degrees) else 0.0
        return replace(
            self,
            difference=self.difference + by,
            standard_error=sqrt(total),
            degrees=total**2 / share if share > 0 else inf,
            earlier=None if self.earlier is None else self.earlier.moved(by, sd),
        )

    def at_first_look(self, share: float) -> "Comparison":
        """This comparison as the first of two looks, at `share` of the runs of the second."""
        return replace(self, level=1 - first_look_alpha(share, 1 - ONE_SIDED))

    def after(self, earlier: "Comparison") -> "Comparison":
        """This comparison as the second look, after one that left it undecided."""
        return replace(self, earlier=earlier) if earlier.seeds_measured else self

    def _margins(self, level: float) -> tuple[float, float]:
        """Lower and upper one-sided bounds."""
        if not self.seeds_measured:
            return -inf, inf
        if self.earlier is None:
            half = self._half(level)
            return self.difference - half, self.difference + half
        first = self.earlier
        reach = first._half(first.level)
        parts = (first._look, first.margin - reach, first.margin + reach, self._look, level)
        return lower_bound(*parts), upper_bound(*parts)

    def _half(self, level: float) -> float:
        quantile = stdtrit(self.degrees, level) if isfinite(self.degrees) else ndtri(level)
        return float(quantile) * self.standard_error

    @property
    def _look(self) -> Look:
        return Look(difference=self.difference, standard_error=self.standard_error, degrees=self.degrees)

    @property
    def lower(self) -> float:
        """One-sided 95 % lower bound."""
        return self._margins(ONE_SIDED)[0]

    @property
    def upper(self) -> float:
        """One-sided 95 % upper bound."""
        return self._margins(ONE_SIDED)[1]

    @property
    def interval(self) -> tuple[float, float] | None:
        """Two-sided 95 %; None where seed noise is unknown."""
        return self._margins(0.975) if self.seeds_measured else None

    def differs(self, tests: int) -> bool:
        """Whether the two-sided interval leaves 0 out at 5 %, shared by `tests` comparisons."""
        lower, upper = self._margins(1 - 0.025 / tests)
        return lower > 0 or upper < 0

    @property
    def verdict(self) -> Verdict:
        lower, upper = self._margins(self.level)
        if upper <= self.margin:
            return Verdict.ADEQUATE
        return Verdict.INFERIOR if lower > self.margin else Verdict.UNDECIDED

    def better(self, tests: int = 1) -> bool:
        """Whether the candidate beats the reference beyond two-sided 95 %, shared by `tests` candidates."""
        return self._margins(1 - 0.025 / max(tests, 1))[1] < 0

    def shown_better(self, tests: int = 1) -> bool | None:
        """True: better, as in `better`; False: worse, beyond the same level; None: neither is shown."""
        lower, upper = self._margins(1 - 0.025 / max(tests, 1))
        return True if upper < 0 else False if lower > 0 else None

    def within_margin(self) -> bool | None:
        """True: both one-sided bounds differ from 0 by at most the margin; False: one lies beyond it for certain."""
        lower, upper = self._margins(self.level)
        if max(abs(lower), abs(upper)) <= self.margin:
            return True
        return False if lower > self.margin or upper < -self.margin else None

    @property
    def smallest_detectable(self) -> float | None:
        """The true difference that this test finds with 80 % power at its one-sided 5 % level."""
        if not self.seeds_measured:
            return None
        return self._half(ONE_SIDED) + self._half(0.8)


def family_intervals(comparisons: Sequence[Comparison]) -> list[tuple[float, float] | None]:
    """Each comparison's two-sided 95 % interval; 0 is left out only where Holm's step-down test rejects it.

    An interval without 0 says "differs", and one of several in a report would say so by chance. So it is drawn out
    to 0 unless the difference survives all of them: the error of the whole report is 5 %, and each interval still
    covers at 95 % (it only grows).
    """
    rest = [comparison for comparison in comparisons if comparison.seeds_measured]
    while rest:
        found = next((comparison for comparison in rest if comparison.differs(len(rest))), None)
        if found is None:
            break
        rest.remove(found)
    intervals = []
    for comparison in comparisons:
        interval = comparison.interval
        if interval is not None and any(comparison is other for other in rest):
            interval = min(interval[0], 0.0), max(interval[1], 0.0)
        intervals.append(interval)
    return intervals


def pool_seed_noise(repeats: Sequence[Sequence[float]]) -> SeedNoise:
    """Pooled variance of groups of repeated runs (same hyper-parameters, different seeds)."""
    groups = [np.asarray(group, dtype=np.float64) for group in repeats]
    groups = [group for group in groups if len(group) > 1 and np.isfinite(group).all()]
    degrees = sum(len(group) - 1 for group in groups)
    if degrees == 0:
        return SeedNoise(variance=0.0, degrees=0.0)
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
    return SeedNoise(variance=squares / degrees, degrees=float(degrees))


def row_variance(runs: Floats, weights: Floats) -> float:
    """Variance of a run's mean that comes from the rows alone: what a row does differently from seed to seed.

    Args:
        runs: [seeds, rows] sums over each row, at least 2 seeds. weights: [rows], as in `compare_nll`.
    """
    total, rows = float(weights.sum()), runs.shape[1]
    residuals = runs - runs.sum(axis=1, keepdims=True) / total * weights
    return float(residuals.var(axis=0, ddof=1).sum() / total**2 * rows / max(rows - 1, 1))


def compare_nll(
    candidate: Floats, reference: Floats, weights: Floats, noise: SeedNoise, margin: float
) -> Comparison:
    """Token-weighted paired comparison of NLL.

    Args:
        candidate, reference: [seeds, rows] sum of the NLL over each row's supervised tokens, nats; the two
            may have different numbers of seeds.
        weights: [rows] supervised tokens; NLL = Σ sums / Σ tokens, a ratio, whose variance over rows is
            linearised.
        noise: of one run's NLL, nats. margin: nats per supervised token.
    """
    deltas = candidate.mean(axis=0) - reference.mean(axis=0)
    total = float(weights.sum())
    difference = float(deltas.sum()) / total
    residuals = deltas - difference * weights
    rows = len(deltas)
    item = float((residuals**2).sum()) / total**2 * rows / max(rows - 1, 1)
    return _combine(difference, item, rows - 1, (len(candidate), len(reference)), noise, margin)


def compare_scores(
    candidate: Floats, reference: Floats, noise: SeedNoise, margin: float, *, scale: float = 100.0
) -> Comparison:
    """Paired comparison of means over rows; a positive difference means that the candidate is worse.

    Args:
        candidate, reference: [seeds, rows] scores of each row. noise, margin: in units.
        scale: units in a score of 1 (points, hundredths, by default); negative where smaller scores are better.
    """
    deltas = scale * (reference.mean(axis=0) - candidate.mean(axis=0))
    rows = len(deltas)
    item = float(deltas.var(ddof=1)) / rows if rows > 1 else 0.0
    return _combine(float(deltas.mean()), item, rows - 1, (len(candidate), len(reference)), noise, margin)


def compare_f1(
    candidate: npt.NDArray[np.int64],
    reference: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    noise: SeedNoise,
    margin: float,
) -> Comparison:
    """Macro-F1 over the classes in `labels`, in points lost.

    The item part is by a paired bootstrap over rows (1000 resamples, fixed seed).

    Args:
        candidate, reference: [seeds, rows] predicted label. labels: [rows] true label. Of several labels for each row
            [seeds, rows, labels] and [rows, labels], 1 where one holds.
        noise, margin: in points.
    """
    weights = _resamples(len(labels))
    classes = np.unique(labels)
    values = np.mean([macro_f1(p, labels, classes, weights) for p in reference], axis=0)
    values = 100 * (values - np.mean([macro_f1(p, labels, classes, weights) for p in candidate], axis=0))
    return _of_resamples(values, len(labels), (len(candidate), len(reference)), noise, margin)


def compare_correlations(
    candidate: Floats, reference: Floats, truth: Floats, noise: SeedNoise, margin: float
) -> Comparison:
    """Pearson's correlation with `truth`, lost; the item part as in `compare_f1`.

    Args:
        candidate, reference: [seeds, rows] numbers found. truth: [rows]. noise, margin: of a correlation.
    """
    weights = _resamples(len(truth))
    values = np.mean([correlations(p, truth, weights) for p in reference], axis=0)
    values = values - np.mean([correlations(p, truth, weights) for p in candidate], axis=0)
    return _of_resamples(values, len(truth), (len(candidate), len(reference)), noise, margin)


def _resamples(rows: int) -> Floats:
    """[1 + resamples, rows] how often each row is drawn, the first time once each."""
    generator = np.random.default_rng(0)
    draws = generator.multinomial(rows, np.full(rows, 1 / rows), size=BOOTSTRAPS).astype(np.float64)
    return np.vstack([np.ones((1, rows)), draws])


def _of_resamples(
    values: Floats, rows: int, seeds: tuple[int, int], noise: SeedNoise, margin: float
) -> Comparison:
    """The comparison from the difference on all rows and on resamples of them."""
    item = float(values[1:].var(ddof=1))
    return _combine(float(values[0]), item, rows - 1, seeds, noise, margin)


def correlations(found: Floats, truth: Floats, weights: Floats) -> Floats:
    """[resamples] Pearson's correlation of numbers [rows], rows weighted by `weights` [resamples, rows]; 0 where one
    of the two does not vary.
    """
    total = weights.sum(1)

    def centred(values: Floats) -> Floats:
        centred_values: Floats = values - (weights @ values / total)[:, None]
        return centred_values

    ours, theirs = centred(found), centred(truth)
    products = (weights * ours * theirs).sum(1)
    sizes = np.sqrt((weights * ours**2).sum(1) * (weights * theirs**2).sum(1))
    return np.asarray(np.divide(products, sizes, out=np.zeros_like(products), where=sizes > 0))


def macro_f1(
    predictions: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    classes: npt.NDArray[np.int64],
    weights: Floats,
) -> Floats:
    """[resamples] mean over classes of F1, rows weighted by `weights` [resamples, rows]; an empty class: 0.

    With several labels for each row `predictions` and `labels` are [rows, labels], and the mean is over those.
    """
    several = labels.ndim > 1
    said = np.asarray(predictions if several else predictions[:, None] == classes, np.float64)
    true = np.asarray(labels if several else labels[:, None] == classes, np.float64)
    hits = weights @ (said * true)
    sizes = weights @ (said + true)
    return np.asarray(np.divide(2 * hits, sizes, out=np.zeros_like(hits), where=sizes > 0).mean(1))


def compare_means(
    candidate: Sequence[float], reference: Sequence[float], noise: SeedNoise, margin: float
) -> Comparison:
    """Comparison of losses without per-row values: seed noise only, the rows taken as given."""
    difference = float(np.mean(candidate) - np.mean(reference))
    return _combine(difference, 0.0, inf, (len(candidate), len(reference)), noise, margin)


def _combine(
    difference: float,
    item_variance: float,
    item_degrees: float,
    seeds: tuple[int, int],
    noise: SeedNoise,
    margin: float,
) -> Comparison:
    """Adds what settings do to rows and what seeds do; Satterthwaite's degrees of freedom.

    What a row does differently from seed to seed is in the item variance and in that between seeds: it is counted
    with the latter, which is not bounded from below. (Bounded by the rows' part, intervals of few repeats
    are too wide: 97 to 98 % with four degrees of freedom.)
    """
    runs = 1 / seeds[0] + 1 / seeds[1]
    items, between = max(item_variance - noise.rows * runs, 0.0), noise.variance * runs
    share = 0.0
    for part, degrees in ((items, item_degrees), (between, noise.degrees)):
        if part > 0 and isfinite(degrees) and degrees > 0:
            share += part**2 / degrees
    total = items + between
    return Comparison(
        difference=difference,
        standard_error=sqrt(total),
        degrees=total**2 / share if share > 0 else inf,
        margin=margin,
        seeds_measured=noise.enough,
    )
