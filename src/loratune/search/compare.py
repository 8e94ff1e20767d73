"""From results to statistics: losses in the metric's unit, seed noise, paired tests. Decides nothing."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from math import inf

import numpy as np

from loratune.maths.noninferiority import (
    Comparison,
    SeedNoise,
    compare_means,
    pool_seed_noise,
)
from loratune.metrics import Rows, find
from loratune.values import HyperParameters, SearchContext, TrialResult

FULL = 0.999
"""Fractions above this count as all rows."""


def unit(context: SearchContext) -> str:
    """Unit of losses, margins and differences."""
    return find(context.wishes.metric).info.unit


def loss(context: SearchContext, result: TrialResult) -> float:
    """Loss in the metric's unit (NLL decides perplexity too); infinite if diverged or not measured."""
    return find(context.wishes.metric).loss(result)


def mean_loss(context: SearchContext, results: Sequence[TrialResult]) -> float:
    """Mean over runs; infinite where there is none or one diverged."""
    return float(np.mean([loss(context, result) for result in results])) if results else inf


def distinct(results: Sequence[TrialResult]) -> tuple[TrialResult, ...]:
    """One result for each cell that was actually run, whatever was asked for."""
    cells = {(x.trial.hyper_parameters, x.trial.seed, x.trial.fraction): x for x in results}
    return tuple(cells.values())


def finished(context: SearchContext, results: Sequence[TrialResult]) -> tuple[TrialResult, ...]:
    """Results with a finite loss, one for each cell that was actually run."""
    return tuple(result for result in distinct(results) if loss(context, result) < inf)


def seed_noise(context: SearchContext, results: Sequence[TrialResult]) -> SeedNoise:
    """Pooled over the settings run on all rows with several seeds; else the context's assumption; else unknown."""
    groups: dict[HyperParameters, list[TrialResult]] = defaultdict(list)
    for result in finished(context, results):
        if result.trial.fraction >= FULL:
            groups[result.trial.hyper_parameters].append(result)
    noise = pool_seed_noise([[loss(context, result) for result in group] for group in groups.values()])
    if not noise.known and context.limits.seed_sd is not None and find(context.wishes.metric).info.by_nll:
        return SeedNoise(variance=context.limits.seed_sd**2, degrees=inf)
    repeated = [group for group in groups.values() if len(group) > 1]
    parts = [_row_part(context, group) * (len(group) - 1) for group in repeated]
    return replace(noise, rows=sum(parts) / noise.degrees) if noise.known else noise


def _row_part(context: SearchContext, group: Sequence[TrialResult]) -> float:
    """Variance of one run's loss that comes from the rows; 0 where values by row were not kept."""
    metric, rows = find(context.wishes.metric), rows_of(context)
    runs = metric.rows_of_all(group)
    return 0.0 if runs is None or not metric.comparable(rows) else metric.noise_of_rows(runs, rows)


def rows_of(context: SearchContext) -> Rows:
    """What the context knows of the validation rows."""
    return Rows(weights=context.data.validation_weights, labels=context.data.validation_labels)


def compare(
    context: SearchContext,
    candidate: Sequence[TrialResult],
    reference: Sequence[TrialResult],
    noise: SeedNoise,
) -> Comparison:
    """Loss of the candidate's runs minus the reference's, paired by validation row where rows were kept.

    Both need at least one finished run.
    """
    metric, rows, margin = find(context.wishes.metric), rows_of(context), context.wishes.margin
    scores = metric.rows_of_all((*candidate, *reference))
    if scores is not None and metric.comparable(rows):
        split = len(candidate)
        return metric.compare(scores[:split], scores[split:], rows, noise, margin)
    return compare_means(
        [loss(context, result) for result in candidate],
        [loss(context, result) for result in reference],
        noise,
        margin,
    )


def rows_are_paired(context: SearchContext, results: Sequence[TrialResult]) -> bool:
    """Whether these results are compared row by row."""
    metric = find(context.wishes.metric)
    return metric.comparable(rows_of(context)) and metric.rows_of_all(results) is not None
