"""Rank against quality, as tuples: each rank at its own learning rate, and all at a single one.

A setting is a group of trials that differ in their seed only. Knows results, not plots.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np
from scipy.special import stdtrit

from loratune.maths.curves import elbow
from loratune.maths.noninferiority import SeedNoise, compare_nll, pool_seed_noise
from loratune.metrics import NLL, MetricInfo
from loratune.reporting.facts import RunFacts
from loratune.reporting.wording import rate
from loratune.values import CurvePoint, HyperParameters, Stage, TrialResult, default_recipe


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Setting:
    """Finished trials of the same hyper-parameters and fraction, one per seed."""

    hyper_parameters: HyperParameters
    fraction: float
    results: tuple[TrialResult, ...]

    def values(self, metric: MetricInfo) -> list[float]:
        """One per seed; all results must know the metric. What the NLL decides is shown as NLL."""
        return [result.nll if metric.by_nll else result.metrics[metric.name] for result in self.results]

    def mean(self, metric: MetricInfo) -> float:
        return float(np.mean(self.values(metric)))

    @property
    def nll(self) -> float:
        """Mean over seeds."""
        return self.mean(NLL.info)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A mean over seeds with its 95 % interval."""

    value: float
    interval: tuple[float, float] | None
    interval_over: str
    """`seeds`, `rows` (one seed only) or empty."""
    seeds: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RankPoint:
    rank: int
    parameters: int
    learning_rate: float
    measured: Measured


@dataclass(frozen=True, kw_only=True, slots=True)
class RankCurve:
    """Points in ascending order of rank; empty where too little was measured."""

    metric: MetricInfo
    points: tuple[RankPoint, ...] = ()
    fraction: float = 1.0
    """Share of the training rows that these trials saw."""
    elbow: int | None = None
    """Kneedle's elbow; drawn, never decides."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GapPoint:
    """Validation minus training NLL at a rank's own learning rate, means over seeds."""

    rank: int
    train: float
    validation: float

    @property
    def gap(self) -> float:
        return self.validation - self.train


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningCurve:
    label: str
    rank: int
    final: bool
    points: tuple[CurvePoint, ...]


def settings(results: Sequence[TrialResult], metric: MetricInfo = NLL.info) -> list[Setting]:
    """Finished trials that know the metric, grouped by everything but the seed."""
    groups: dict[tuple[HyperParameters, float], list[TrialResult]] = defaultdict(list)
    for result in results:
        if result.finished and (metric.by_nll or metric.name in result.metrics):
            groups[result.trial.hyper_parameters, result.trial.fraction].append(result)
    return [
        Setting(hyper_parameters=values, fraction=fraction, results=tuple(members))
        for (values, fraction), members in groups.items()
    ]


def same_rate(learning_rate: float) -> str:
    """Learning rates that agree in two digits count as one: brackets from a law differ in the third."""
    return f"{learning_rate:.1e}"


def own_rate_settings(facts: RunFacts) -> list[Setting]:
    """The setting of each rank that had most seeds (ties: the lowest NLL), at the highest common fidelity."""
    found = settings([result for result in facts.results if result.asked.stage is Stage.RANK])
    fidelity = _highest_fraction(found)
    chosen: dict[int, Setting] = {}
    for setting in found:
        if setting.fraction != fidelity:
            continue
        rank = setting.hyper_parameters.r
        present = chosen.get(rank)
        merit = (len(setting.results), -setting.nll)
        if present is None or merit > (len(present.results), -present.nll):
            chosen[rank] = setting
    return [chosen[rank] for rank in sorted(chosen)]


def own_rate_curve(facts: RunFacts, metric: MetricInfo = NLL.info) -> RankCurve:
    """Each rank at its own learning rate."""
    return _curve(facts, [s for s in own_rate_settings(facts) if _knows(s, metric)], metric)


def single_rate_curve(facts: RunFacts, metric: MetricInfo = NLL.info) -> RankCurve:
    """All ranks at the learning rate that most of them were tried at; empty below three ranks.

    Ties go to the higher fidelity, then to the rate that more trials had.
    """
    groups: dict[tuple[float, str], dict[int, Setting]] = defaultdict(dict)
    for setting in settings([r for r in facts.results if r.asked.stage is Stage.RANK], metric):
        group = groups[setting.fraction, same_rate(setting.hyper_parameters.learning_rate)]
        present = group.get(setting.hyper_parameters.r)
        if present is None or len(setting.results) > len(present.results):
            group[setting.hyper_parameters.r] = setting
    if not groups:
        return RankCurve(metric=metric)

    def merit(key: tuple[float, str]) -> tuple[int, float, int]:
        return len(groups[key]), key[0], sum(len(setting.results) for setting in groups[key].values())

    best = groups[max(groups, key=merit)]
    return _curve(facts, [best[rank] for rank in sorted(best)] if len(best) >= 3 else [], metric)


def measure(found: Sequence[Setting], metric: MetricInfo, facts: RunFacts) -> list[Measured]:
    """Means with 95 % intervals: t over seeds, or over rows where nothing was repeated.

    The seed variance is pooled over these settings and those of each rank at its own learning rate: two
    seeds alone would need t = 12.7, and settings at the edge of stability vary many times more.
    """
    fractions = {setting.fraction for setting in found}
    pool = {(each.hyper_parameters, each.fraction): each for each in (*found, *own_rate_settings(facts))}
    noise = pool_seed_noise(
        [each.values(metric) for each in pool.values() if each.fraction in fractions and _knows(each, metric)]
    )
    return [_measured(setting, metric, noise, facts) for setting in found]


def gaps(facts: RunFacts) -> list[GapPoint]:
    """One point per rank."""
    return [
        GapPoint(
            rank=setting.hyper_parameters.r,
            train=float(np.mean([result.train_nll for result in setting.results])),
            validation=setting.nll,
        )
        for setting in own_rate_settings(facts)
    ]


def learning_curves(facts: RunFacts) -> list[LearningCurve]:
    """The first seed of each rank at its own learning rate, then the final trials."""
    found = [(f"r {s.hyper_parameters.r}", s.results[0]) for s in own_rate_settings(facts)]
    for result in facts.results:
        if result.asked.stage is Stage.FINAL:
            found.append((_final_label(result.trial.hyper_parameters, facts), result))
    return [
        LearningCurve(
            label=label,
            rank=result.trial.hyper_parameters.r,
            final=result.asked.stage is Stage.FINAL,
            points=result.curve,
        )
        for label, result in found
        if result.curve
    ]


def _final_label(values: HyperParameters, facts: RunFacts) -> str:
    if facts.is_recommended(values):
        return "recommended"
    recipe = default_recipe(values.epochs, values.warmup_ratio)
    if replace(values, target_modules=recipe.target_modules) == recipe:
        return "default recipe"
    return f"r {values.r} at {rate(values.learning_rate)}"


def _knows(setting: Setting, metric: MetricInfo) -> bool:
    return metric.by_nll or all(metric.name in result.metrics for result in setting.results)


def _highest_fraction(found: Sequence[Setting]) -> float:
    """The highest fidelity at which two ranks or more were measured, else the highest."""
    ranks: dict[float, set[int]] = defaultdict(set)
    for setting in found:
        ranks[setting.fraction].add(setting.hyper_parameters.r)
    common = [fraction for fraction, members in ranks.items() if len(members) >= 2]
    return max(common or ranks, default=1.0)


def _curve(facts: RunFacts, found: Sequence[Setting], metric: MetricInfo) -> RankCurve:
    points = tuple(
        RankPoint(
            rank=setting.hyper_parameters.r,
            parameters=setting.hyper_parameters.r * facts.parameters_per_rank,
            learning_rate=setting.hyper_parameters.learning_rate,
            measured=measured,
        )
        for setting, measured in zip(found, measure(found, metric, facts), strict=True)
    )
    return RankCurve(
        metric=metric,
        points=points,
        fraction=found[0].fraction if found else 1.0,
        elbow=elbow(
            [point.rank for point in points],
            [point.measured.value for point in points],
            larger_is_better=metric.larger_is_better,
        ),
    )


def _measured(setting: Setting, metric: MetricInfo, noise: SeedNoise, facts: RunFacts) -> Measured:
    value, seeds = setting.mean(metric), len(setting.results)
    if noise.known:
        half = float(stdtrit(noise.degrees, 0.975)) * sqrt(noise.variance / seeds)
        return Measured(
            value=value, interval=(value - half, value + half), interval_over="seeds", seeds=seeds
        )
    interval = _interval_over_rows(setting.results[0], metric, facts)
    return Measured(value=value, interval=interval, interval_over="rows" if interval else "", seeds=seeds)


def _interval_over_rows(
    result: TrialResult, metric: MetricInfo, facts: RunFacts
) -> tuple[float, float] | None:
    """Sampling of validation rows; None where none are kept, or where the value is not their mean (F1, correlation)."""
    rows = result.example_nll if metric.by_nll else result.example_scores.get(metric.column)
    if rows is None or len(rows) < 2:
        return None
    if not metric.by_nll and not np.isclose(np.mean(rows), result.metrics[metric.name]):
        return None
    weights = facts.validation_weights if metric.by_nll else np.ones(len(rows))
    if weights is None or len(weights) != len(rows):
        return None
    none = SeedNoise(variance=0.0, degrees=np.inf)
    zero = np.zeros((1, len(rows)))
    return compare_nll(np.asarray(rows, np.float64)[None], zero, weights, none, 0.0).interval
