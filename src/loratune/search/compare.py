"""From results to statistics: losses in the metric's unit, seed noise, paired tests. Decides nothing."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from math import inf

import numpy as np

from loratune.maths.noninferiority import (
    Comparison,
    SeedNoise,
    compare_f1,
    compare_means,
    compare_nll,
    compare_scores,
    pool_seed_noise,
    row_variance,
)
from loratune.values import HyperParameters, SearchContext, TrialResult

FULL = 0.999
"""Fractions above this count as all rows."""
NLL_METRICS = ("nll", "perplexity")


def unit(context: SearchContext) -> str:
    """Unit of losses, margins and differences."""
    return "nats" if context.metric in NLL_METRICS else "points"


def loss(context: SearchContext, result: TrialResult) -> float:
    """NLL in nats (it decides perplexity too), or points of the metric short of 100; infinite if diverged."""
    if not result.finished:
        return inf
    if context.metric in NLL_METRICS:
        return result.nll
    value = result.metrics.get(context.metric)
    if value is None:
        return inf
    return 100 * (1 - value) if context.larger_is_better else 100 * value


def mean_loss(context: SearchContext, results: Sequence[TrialResult]) -> float:
    """Mean over runs; infinite where there is none or one diverged."""
    return float(np.mean([loss(context, result) for result in results])) if results else inf


def distinct(results: Sequence[TrialResult]) -> tuple[TrialResult, ...]:
    """One result for each cell that was really run, whatever was asked for."""
    cells = {(x.trial.hyper_parameters, x.trial.seed, x.trial.fraction): x for x in results}
    return tuple(cells.values())


def finished(context: SearchContext, results: Sequence[TrialResult]) -> tuple[TrialResult, ...]:
    """Those with a finite loss, one for each cell that was really run."""
    return tuple(result for result in distinct(results) if loss(context, result) < inf)


def seed_noise(context: SearchContext, results: Sequence[TrialResult]) -> SeedNoise:
    """Pooled over the settings run on all rows with several seeds; else the context's assumption; else unknown."""
    groups: dict[HyperParameters, list[TrialResult]] = defaultdict(list)
    for result in finished(context, results):
        if result.trial.fraction >= FULL:
            groups[result.trial.hyper_parameters].append(result)
    noise = pool_seed_noise([[loss(context, result) for result in group] for group in groups.values()])
    if not noise.known and context.seed_sd is not None and context.metric in NLL_METRICS:
        return SeedNoise(variance=context.seed_sd**2, degrees=inf)
    repeated = [group for group in groups.values() if len(group) > 1]
    parts = [_row_part(context, group) * (len(group) - 1) for group in repeated]
    return replace(noise, rows=sum(parts) / noise.degrees) if noise.known else noise


def _row_part(context: SearchContext, group: Sequence[TrialResult]) -> float:
    """Variance of one run's loss that comes from the rows; 0 where no values of each row were kept."""
    if context.metric == "f1" or not rows_are_paired(context, group):
        return 0.0
    if context.metric in NLL_METRICS:
        assert context.validation_weights is not None
        runs = np.array([result.example_nll for result in group], dtype=np.float64)
        return row_variance(runs, context.validation_weights)
    runs = np.array([result.example_scores[context.metric] for result in group], dtype=np.float64)
    return row_variance(100 * runs, np.ones(runs.shape[1]))


def compare(
    context: SearchContext,
    candidate: Sequence[TrialResult],
    reference: Sequence[TrialResult],
    noise: SeedNoise,
) -> Comparison:
    """Loss of the candidate's runs minus the reference's, paired by validation row where rows were kept.

    Both need at least one finished run.
    """
    margin = context.margin
    results = (*candidate, *reference)
    if context.metric in NLL_METRICS:
        sums = [result.example_nll for result in results]
        if context.validation_weights is not None and all(values is not None for values in sums):
            stacked = np.array(sums, dtype=np.float64)
            split = len(candidate)
            return compare_nll(stacked[:split], stacked[split:], context.validation_weights, noise, margin)
    elif context.metric == "f1" and context.validation_labels is not None:
        if all("prediction" in result.example_scores for result in results):
            predicted = np.array([result.example_scores["prediction"] for result in results], dtype=np.int64)
            split = len(candidate)
            return compare_f1(predicted[:split], predicted[split:], context.validation_labels, noise, margin)
    elif all(context.metric in result.example_scores for result in results):
        scores = np.array([result.example_scores[context.metric] for result in results], dtype=np.float64)
        split = len(candidate)
        return compare_scores(scores[:split], scores[split:], noise, margin)
    return compare_means(
        [loss(context, result) for result in candidate],
        [loss(context, result) for result in reference],
        noise,
        margin,
    )


def rows_are_paired(context: SearchContext, results: Sequence[TrialResult]) -> bool:
    """Whether comparisons of these results use values of each validation row."""
    if context.metric in NLL_METRICS:
        return context.validation_weights is not None and all(r.example_nll is not None for r in results)
    name = "prediction" if context.metric == "f1" else context.metric
    return all(name in result.example_scores for result in results)
