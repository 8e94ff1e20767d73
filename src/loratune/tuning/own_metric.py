"""A user's metric tried on a few rows before anything is trained or written: it may fail, or point the other way."""

from __future__ import annotations

from dataclasses import replace

from loratune.data.table import TokenTable
from loratune.engine.pack import PackEngine
from loratune.metrics import BUILT_IN, Metric, Outputs

ROWS = 32


def try_metric(engine: PackEngine) -> tuple[str, ...]:
    """Score the base model on a few validation rows, and the references against themselves; notes on what is odd.

    Raises `InputError` where the metric fails or gives anything but a finite score for each row.
    """
    metric = engine.scoring.metric
    if metric.name in BUILT_IN:
        return ()
    table = engine.sample(ROWS)
    (base,) = engine.evaluate([None], table, labels=engine.scoring.asks_labels)
    outputs = engine.scoring.outputs(base, table)
    return _oddities(metric, outputs, table)


def _oddities(metric: Metric, outputs: Outputs, table: TokenTable) -> tuple[str, ...]:
    scores = metric.scores(outputs)
    perfect = metric.scores(replace(outputs, texts=outputs.references))
    if scores is None or perfect is None:
        return ()
    info = metric.info
    base, best = metric.value(scores, outputs.rows), metric.value(perfect, outputs.rows)
    if info.loss(best) <= info.loss(base):
        return ()
    return (
        f"On {len(table)} rows the {info.title} of the references against themselves is {info.text(best)}, worse than "
        f"the base model's {info.text(base)}, while a {'larger' if info.larger_is_better else 'smaller'} one counts as "
        "better: see larger_is_better of loratune.metrics.base.",
    )
