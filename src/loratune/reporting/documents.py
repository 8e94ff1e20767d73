"""A run's report as Markdown and as JSON, from facts alone."""

from __future__ import annotations

import re
from json import dumps

from loratune.reporting.contents import contents
from loratune.reporting.facts import RunFacts, to_stored
from loratune.reporting.html import templates
from loratune.values.events import TrialEnded, event_values
from loratune.values.plain import finite

_MARKS = re.compile(r"([\\`*_{}\[\]<>#|~])")
"""Letters that mean something in Markdown."""


def to_markdown(facts: RunFacts) -> str:
    """The page's words and tables, without its figures; everything from outside is escaped."""
    environment = templates(autoescape=False)
    environment.filters |= {"md": _escaped, "share": _share}
    text = environment.get_template("report.md.j2").render(**contents(facts))
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def to_json(facts: RunFacts) -> str:
    """All facts, and for each trial all but the values of single rows."""
    trials = [event_values(TrialEnded.of(each)) for each in facts.results]
    for trial in trials:
        del trial["event"]
    return dumps({**finite(to_stored(facts)), "trials": trials}, indent=1, allow_nan=False) + "\n"


def _escaped(text: object) -> str:
    """On one line, with no letter that Markdown or a table would take for its own."""
    return _MARKS.sub(r"\\\1", " ".join(str(text).split()))


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"
