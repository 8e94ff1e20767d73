"""Metrics of classification: the most likely label of each row against the true one."""

import numpy as np

from loratune.maths.noninferiority import Comparison, SeedNoise, compare_f1, macro_f1
from loratune.metrics.base import Floats, Metric, Outputs, Rows
from loratune.metrics.info import POINTS, MetricInfo, Needs


class Accuracy(Metric):
    """Share of the rows whose most likely label is the true one."""

    info = MetricInfo(
        name="accuracy", title="accuracy", unit=POINTS, larger_is_better=True, margin=1.0, counts_rows=True
    )
    needs = Needs.LABELS

    def scores(self, outputs: Outputs) -> Floats | None:
        if outputs.predictions is None or outputs.rows.labels is None:
            return None
        return np.asarray(outputs.predictions == outputs.rows.labels, np.float64)


class MacroF1(Metric):
    """Mean of F1 over the classes present among the true labels. A row's score is its predicted label."""

    info = MetricInfo(name="f1", title="macro-F1", unit=POINTS, larger_is_better=True, margin=1.0)
    needs = Needs.LABELS

    @property
    def column(self) -> str:
        return "prediction"

    def scores(self, outputs: Outputs) -> Floats | None:
        if outputs.predictions is None or outputs.rows.labels is None:
            return None
        return outputs.predictions.astype(np.float64)

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
