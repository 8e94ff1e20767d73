"""What can be optimised: each metric is one object that scores, compares and words itself; one registry of them.

No other room compares metric names or knows a default margin.
"""

from loratune.metrics.function import FunctionMetric, as_metric, is_address, metric
from loratune.metrics.info import MetricInfo, Needs
from loratune.metrics.metric import Metric, Outputs, Rows
from loratune.metrics.registry import (
    BUILT_IN,
    NLL,
    default_margin,
    find,
    info_of,
    margin_in_nats,
    measure,
    metrics,
    named,
    register,
    usual_seed_sd,
)

__all__ = [
    "BUILT_IN",
    "NLL",
    "FunctionMetric",
    "Metric",
    "MetricInfo",
    "Needs",
    "Outputs",
    "Rows",
    "as_metric",
    "default_margin",
    "find",
    "info_of",
    "is_address",
    "margin_in_nats",
    "measure",
    "metric",
    "metrics",
    "named",
    "register",
    "usual_seed_sd",
]
