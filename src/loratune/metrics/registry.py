"""The one list of metrics: by name, in the order in which they are told."""

from collections.abc import Mapping

from loratune.errors import InputError
from loratune.metrics.info import POINTS, MetricInfo
from loratune.metrics.labelled import Accuracy, MacroF1
from loratune.metrics.likelihood import ExactMatch, Nll, Perplexity
from loratune.metrics.metric import Floats, Metric, Outputs

NLL = Nll()
BUILT_IN: Mapping[str, Metric] = {
    metric.name: metric for metric in (NLL, Perplexity(), ExactMatch(), Accuracy(), MacroF1())
}


def find(name: str) -> Metric:
    """The metric of that name. Raises `InputError` where there is none."""
    if name not in BUILT_IN:
        raise InputError(f"--metric must be one of {', '.join(BUILT_IN)}, got {name!r}; change --metric.")
    return BUILT_IN[name]


def metrics() -> tuple[Metric, ...]:
    """All of them, in the order in which they are told."""
    return tuple(BUILT_IN.values())


def info_of(name: str, *known: MetricInfo | None) -> MetricInfo:
    """What there is to say of a metric: what a run kept of it (`known`), else what is known here."""
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


def measure(outputs: Outputs) -> tuple[dict[str, float], dict[str, Floats]]:
    """Every metric that `outputs` allow, by name, and the scores of each row by column; the NLL's are its own."""
    values: dict[str, float] = {}
    columns: dict[str, Floats] = {}
    for metric in metrics():
        scores = metric.scores(outputs)
        if scores is None:
            continue
        values[metric.name] = metric.value(scores, outputs.rows)
        if not metric.info.by_nll:
            columns[metric.column] = scores
    return values, columns
