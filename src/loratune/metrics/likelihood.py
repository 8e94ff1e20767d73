"""Metrics that one pass over the rows gives: NLL, perplexity, exact match."""

from math import exp, inf

import numpy as np

from loratune.maths.noninferiority import Comparison, SeedNoise, compare_nll, row_variance
from loratune.metrics.base import Floats, Metric, Outputs, Rows
from loratune.metrics.info import NATS, POINTS, MetricInfo, Needs
from loratune.values import NLL_MARGIN, TrialResult

_LARGEST_EXPONENT = 700.0


def _are_numbers(rows: Rows) -> bool:
    """Whether each row is to be given a number."""
    return rows.labels is not None and rows.labels.ndim == 1 and np.issubdtype(rows.labels.dtype, np.floating)


class Nll(Metric):
    """Mean negative log-likelihood per supervised token. A row's score is its sum."""

    info = MetricInfo(
        name="nll", title="NLL", unit=NATS, larger_is_better=False, margin=NLL_MARGIN, by_nll=True
    )
    needs = Needs.LIKELIHOOD

    def scores(self, outputs: Outputs) -> Floats | None:
        return outputs.nll

    def value(self, scores: Floats, rows: Rows) -> float:
        assert rows.weights is not None
        return float(scores.sum() / max(1, rows.weights.sum()))

    def compare(
        self, candidate: Floats, reference: Floats, rows: Rows, noise: SeedNoise, margin: float
    ) -> Comparison:
        assert rows.weights is not None
        return compare_nll(candidate, reference, rows.weights, noise, margin)

    def comparable(self, rows: Rows) -> bool:
        return rows.weights is not None

    def noise_of_rows(self, runs: Floats, rows: Rows) -> float:
        assert rows.weights is not None
        return row_variance(runs, rows.weights)

    def of(self, result: TrialResult) -> float | None:
        return result.nll

    def rows_of(self, result: TrialResult) -> Floats | None:
        return result.example_nll

    def loss(self, result: TrialResult) -> float:
        return result.nll if result.finished else inf


class Perplexity(Nll):
    """exp(NLL): decided by the NLL, with its margin."""

    info = MetricInfo(
        name="perplexity",
        title="perplexity",
        unit=NATS,
        larger_is_better=False,
        margin=NLL_MARGIN,
        by_nll=True,
        of_tokens=True,
    )

    def scores(self, outputs: Outputs) -> Floats | None:
        if outputs.margins is not None or _are_numbers(outputs.rows):
            return None  # a squared error is no likelihood
        return outputs.nll

    def value(self, scores: Floats, rows: Rows) -> float:
        return exp(min(super().value(scores, rows), _LARGEST_EXPONENT))

    def of(self, result: TrialResult) -> float | None:
        return exp(min(result.nll, _LARGEST_EXPONENT))


class ExactMatch(Metric):
    """Share of the rows whose every supervised token is the most likely one given the true tokens before it."""

    info = MetricInfo(
        name="exact_match",
        title="exact match",
        unit=POINTS,
        larger_is_better=True,
        margin=1.0,
        counts_rows=True,
        of_tokens=True,
    )
    needs = Needs.LIKELIHOOD

    def scores(self, outputs: Outputs) -> Floats | None:
        if outputs.margins is not None or _are_numbers(outputs.rows):
            return None  # no number is met exactly
        return outputs.exact_match.astype(np.float64)
