"""How a finished run shows itself in a notebook: a part of a page, everything from outside escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from loratune.metrics import info_of
from loratune.reporting.wording import MARKS, NOTE, interval, number, state_of
from loratune.values import Evidence

_CELL = Markup('<td style="text-align:left">{}</td>')


def picture(
    *,
    heading: str,
    verdict: Sequence[str],
    values: Mapping[str, Any],
    metrics: Mapping[str, Any],
    evidence: Sequence[Evidence],
    directory: str,
) -> Markup:
    """Verdict, values, scores and what was tested; `metrics` as in `result.json`."""
    parts = [Markup("<h4>{}</h4>").format(heading)]
    parts += [Markup("<p>{}</p>").format(each) for each in verdict]
    parts.append(_table(list(values), [[_told(each) for each in values.values()]]))
    parts.append(_scores(metrics))
    parts.append(_claims(evidence))
    parts.append(Markup("<p>Everything: <code>{}/report.html</code></p>").format(directory))
    return Markup("").join([Markup("<div>"), *parts, Markup("</div>")])


def _scores(metrics: Mapping[str, Any]) -> Markup:
    """On the test rows where there are any, else on validation."""
    split = "test" if metrics["test"] else "validation"
    models = {
        "base model": metrics["base_model"][split],
        "default recipe": metrics["default_recipe"][split],
        "recommended": metrics[split],
    }
    names = list(dict.fromkeys(name for scores in models.values() for name in scores))
    lines = [
        [model, *(info_of(name).text(scores.get(name)) for name in names)]
        for model, scores in models.items()
        if scores
    ]
    return _table([f"{split} rows", *(info_of(name).title for name in names)], lines)


def _claims(evidence: Sequence[Evidence]) -> Markup:
    told = [(state_of(each), each) for each in evidence]
    lines = [
        [
            f"{MARKS[state]} {state}",
            each.claim,
            f"{number(each.value, 3)} {interval(each.interval)}".strip(" –"),
        ]
        for state, each in told
        if state != NOTE
    ]
    return _table(["", "claim", "measured"], lines) if lines else Markup("")


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> Markup:
    head = Markup("").join(Markup('<th style="text-align:left">{}</th>').format(each) for each in heads)
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(Markup("").join(_CELL.format(each) for each in line)) for line in lines
    )
    return Markup("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(head, body)


def _told(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
