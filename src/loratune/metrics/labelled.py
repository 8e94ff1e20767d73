"""Metrics of classification and regression: what was found for each row against what is true of it.

One class for each row is a number [rows], several labels are 0 or 1 [rows, labels], and a number to be met is floating.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from loratune.maths.noninferiority import (
    Comparison,
    SeedNoise,
    compare_correlations,
    compare_f1,
    correlations,
    macro_f1,
)
from loratune.metrics.base import Floats, Metric, Outputs, Rows
from loratune.metrics.info import POINTS, MetricInfo, Needs
from loratune.metrics.names import PREDICTION


def _found(outputs: Outputs, *, numbers: bool) -> tuple[npt.NDArray[Any], npt.NDArray[Any]] | None:
    """Predictions and truths where they are of that kind."""
    said, true = outputs.predictions, outputs.rows.labels
    if said is None or true is None or _are_numbers(true) is not numbers:
        return None
    return said, true


def _are_numbers(labels: npt.NDArray[Any]) -> bool:
    return labels.ndim == 1 and np.issubdtype(labels.dtype, np.floating)


class Accuracy(Metric):
    """Share of the rows whose most likely label is the true one; of several labels, whose every label is right."""

    info = MetricInfo(
        name="accuracy", title="accuracy", unit=POINTS, larger_is_better=True, margin=1.0, counts_rows=True
    )
    needs = Needs.LABELS

    def scores(self, outputs: Outputs) -> Floats | None:
        found = _found(outputs, numbers=False)
        if found is None:
            return None
        right = found[0] == found[1]
        return np.asarray(right if right.ndim == 1 else right.all(1), np.float64)


class MacroF1(Metric):
    """Mean of F1 over the classes present among the true labels, or over all of several labels.

    A row's score is its predicted label, or labels [labels].
    """

    info = MetricInfo(
        name="f1", title="macro-F1", unit=POINTS, larger_is_better=True, margin=1.0, rows_under=PREDICTION
    )
    needs = Needs.LABELS

    def scores(self, outputs: Outputs) -> Floats | None:
        found = _found(outputs, numbers=False)
        return None if found is None else found[0].astype(np.float64)

    def value(self, scores: Floats, rows: Rows) -> float:
        assert rows.labels is not None
        ones = np.ones((1, len(scores)))
        return float(macro_f1(scores.astype(np.int64), rows.labels, np.unique(rows.labels), ones)[0])

    def compare(
        self, candidate: Floats, reference: Floats, rows: Rows, noise: SeedNoise, margin: float
    ) -> Comparison:
        assert rows.labels is not None
        return compare_f1(candidate.astype(np.int64), reference.astype(np.int64), rows.labels, noise, margin)

    def comparable(self, rows: Rows) -> bool:
        return rows.labels is not None

    def noise_of_rows(self, runs: Floats, rows: Rows) -> float:
        return 0.0  # no mean over rows: its bootstrap has the rows' part, and the rest is counted as between seeds


class Correlation(Metric):
    """Pearson's correlation of the numbers found with the true ones. A row's score is the number found."""

    info = MetricInfo(
        name="correlation", title="correlation", unit="of 1", larger_is_better=True, margin=0.01
    )
    needs = Needs.NUMBERS

    def scores(self, outputs: Outputs) -> Floats | None:
        found = _found(outputs, numbers=True)
        return None if found is None else found[0].astype(np.float64)

    def value(self, scores: Floats, rows: Rows) -> float:
        assert rows.labels is not None
        return float(correlations(scores, rows.labels, np.ones((1, len(scores))))[0])

    def compare(
        self, candidate: Floats, reference: Floats, rows: Rows, noise: SeedNoise, margin: float
    ) -> Comparison:
        assert rows.labels is not None
        return compare_correlations(candidate, reference, rows.labels, noise, margin)

    def comparable(self, rows: Rows) -> bool:
        return rows.labels is not None and _are_numbers(rows.labels)

    def noise_of_rows(self, runs: Floats, rows: Rows) -> float:
        return 0.0  # as of F1
