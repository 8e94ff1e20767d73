"""The one list of metrics: by name, in the order in which they are shown."""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from loratune.errors import InputError
from loratune.metrics.base import Floats, Metric, Outputs
from loratune.metrics.function import load
from loratune.metrics.generated import GeneratedMatch, JsonMatch, Regex, bleu, chrf, rouge
from loratune.metrics.info import POINTS, MetricInfo, Needs
from loratune.metrics.labelled import Accuracy, Correlation, MacroF1
from loratune.metrics.likelihood import ExactMatch, Nll, Perplexity
from loratune.metrics.names import REGEX, is_address, usual_seed_sd
from loratune.metrics.preferred import PreferenceAccuracy, PreferenceMargin

NLL = Nll()
_MATCH = GeneratedMatch()
_OF_TEXT = (_MATCH, JsonMatch(), rouge("rouge1"), rouge("rouge2"), rouge("rougeL"), bleu(), chrf())
BUILT_IN: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        NLL,
        Perplexity(),
        ExactMatch(),
        Accuracy(),
        MacroF1(),
        Correlation(),
        PreferenceAccuracy(),
        PreferenceMargin(),
        *_OF_TEXT,
    )
}


_OWN: dict[str, Metric] = {}
"""What the user named or passed, by name."""


def find(name: str) -> Metric:
    """The metric of that name; imports nothing. Raises `InputError` where there is none."""
    if name.startswith(REGEX):
        return _regex(name)
    found = BUILT_IN.get(name) or _OWN.get(name)
    if found is None:
        raise InputError(
            f"--metric must be one of {', '.join(BUILT_IN)}, {REGEX}EXPRESSION, or package.module:function, got "
            f"{name!r}; give one of them."
        )
    return found


_regex = lru_cache(maxsize=16)(Regex)


def searched_by(metric: Metric) -> Metric:
    """What a search compares its trials by: where the metric needs generated text the NLL, of which every row has
    little noise, and for which no trial must write a word."""
    return NLL if metric.needs is Needs.GENERATION else metric


def named(name: str) -> Metric:
    """`find`, which also imports an unknown `package.module:function`: call it with a user's words only."""
    return register(load(name)) if name not in _OWN and is_address(name) else find(name)


def register(metric: Metric) -> Metric:
    """Make a metric known by its name, in place of an earlier one. Raises `InputError` for a built-in name."""
    if metric.name in BUILT_IN:
        raise InputError(
            f"a metric of your own must not be named {metric.name!r}, which is built in; try 'my_{metric.name}'."
        )
    _OWN[metric.name] = metric
    return metric


def metrics(chosen: str = NLL.name) -> tuple[Metric, ...]:
    """The metrics built in, in the order in which they are shown, and the chosen one."""
    return tuple(dict.fromkeys((*BUILT_IN.values(), find(chosen))))


def info_of(name: str, *known: MetricInfo | None) -> MetricInfo:
    """A metric's description: the one that a run has stored (`known`), else the built-in one."""
    for info in known:
        if info is not None and info.name == name:
            return info
    if name in BUILT_IN:
        return BUILT_IN[name].info
    title = name.rpartition(":")[2].replace("_", " ")
    return MetricInfo(name=name, title=title, unit=POINTS, larger_is_better=True, margin=1.0)


def margin_in_nats(name: str, margin: float) -> float:
    """The user's margin where it is in nats, else that of the NLL."""
    return margin if find(name).info.by_nll else NLL.info.margin


def measure(outputs: Outputs, chosen: Metric = NLL) -> tuple[dict[str, float], dict[str, Floats]]:
    """Every built-in metric that `outputs` allow, and the chosen one; of generated text it and the exact match alone.

    Returns values by name, and the scores of each row by column (but the NLL's, which results keep by themselves).
    Raises `InputError` where the user's function fails.
    """
    values: dict[str, float] = {}
    columns: dict[str, Floats] = {}
    for metric in dict.fromkeys((*BUILT_IN.values(), chosen)):
        if metric.needs is Needs.GENERATION and metric not in (chosen, _MATCH):
            continue
        scores = metric.scores(outputs)
        if scores is None:
            continue
        values[metric.name] = metric.value(scores, outputs.rows)
        if not metric.info.by_nll:
            columns[metric.column] = scores
    return values, columns


def right_rows(scores: Mapping[str, Floats]) -> npt.NDArray[np.bool_] | None:
    """[rows] whether each is right, by the first metric of right rows that left its scores; None where none did.

    Args:
        scores: of each row, by column.
    """
    counting = (metric for metric in BUILT_IN.values() if metric.info.counts_rows)
    found = next((scores[metric.column] for metric in counting if metric.column in scores), None)
    return None if found is None else np.asarray(found > 0.5, bool)


def default_margin(name: str, labels: int) -> float:
    """Tolerated loss where the user gives none: the metric's, but never less than what one seed changes.

    Args:
        labels: how many different ones the rows have as completions, 0 for texts.
    """
    info = find(name).info
    return max(info.margin, usual_seed_sd(labels)) if info.by_nll else info.margin
