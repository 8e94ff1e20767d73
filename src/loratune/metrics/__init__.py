"""What can be optimised: each metric is one object that scores, compares and words itself; one registry of them.

No other room compares metric names or knows a default margin. Loaded on first use: what only needs the names
(`loratune.metrics.names`) waits for no numpy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loratune.metrics.base import Metric, Outputs, Rows, UnscorableRow
    from loratune.metrics.function import FunctionMetric, as_metric, metric
    from loratune.metrics.info import MetricInfo, Needs
    from loratune.metrics.names import PREDICTION, is_address, usual_seed_sd
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
        right_rows,
        searched_by,
    )

__all__ = [
    "BUILT_IN",
    "NLL",
    "PREDICTION",
    "FunctionMetric",
    "Metric",
    "MetricInfo",
    "Needs",
    "Outputs",
    "Rows",
    "UnscorableRow",
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
    "right_rows",
    "searched_by",
    "usual_seed_sd",
]

_HOME = {
    **dict.fromkeys(("Metric", "Outputs", "Rows", "UnscorableRow"), "base"),
    **dict.fromkeys(("FunctionMetric", "as_metric", "metric"), "function"),
    **dict.fromkeys(("MetricInfo", "Needs"), "info"),
    **dict.fromkeys(("PREDICTION", "is_address", "usual_seed_sd"), "names"),
}
"""File of each name; the registry's own are not listed."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME.get(name, 'registry')}"), name)
