"""Metrics of preference pairs: whether, and by how much, the chosen answer is preferred to the rejected one.

Unlike the loss they compare between betas: both are of the margin before beta scales it.
"""

import numpy as np

from loratune.metrics.base import Floats, Metric, Outputs
from loratune.metrics.info import NATS, POINTS, MetricInfo, Needs


class PreferenceAccuracy(Metric):
    """Share of the pairs whose chosen answer is preferred; one without a preference counts half."""

    info = MetricInfo(
        name="preference_accuracy",
        title="preference accuracy",
        unit=POINTS,
        larger_is_better=True,
        margin=1.0,
        counts_rows=True,
    )
    needs = Needs.PREFERENCES

    def scores(self, outputs: Outputs) -> Floats | None:
        if outputs.margins is None:
            return None
        return np.asarray((outputs.margins > 0) + 0.5 * (outputs.margins == 0), np.float64)


class PreferenceMargin(Metric):
    """Mean margin in nats: of DPO by how much more than in the base model the chosen answer is likelier, of ORPO and
    SimPO the difference of the log-likelihoods per token."""

    info = MetricInfo(
        name="preference_margin", title="preference margin", unit=NATS, larger_is_better=True, margin=0.05
    )
    needs = Needs.PREFERENCES

    def scores(self, outputs: Outputs) -> Floats | None:
        return outputs.margins
