"""A run's report as one HTML file that opens offline, as Markdown and as JSON, from facts alone.

jinja2 escapes everything from outside.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from json import dumps
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from loratune.files.write import write_atomically
from loratune.reporting import figures, takeaways, wording
from loratune.reporting.contents import contents
from loratune.reporting.facts import RunFacts, to_stored
from loratune.reporting.later_stages import alpha_points, batch_cells, stage_costs, truncation_sentence
from loratune.reporting.rank_curves import gaps, learning_curves, own_rate_curve, single_rate_curve
from loratune.reporting.svg import Drawing
from loratune.values import Stage
from loratune.values.events import TrialEnded, event_values
from loratune.values.plain import finite


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A figure with its sentence, or the sentence that says why there is none."""

    sentence: str
    html: Markup | None = None


def write_html(facts: RunFacts, directory: Path, drawn: dict[str, Figure] | None = None) -> Path:
    """Write `report.html`; `drawn` and what it raises as `draw` has them."""
    return write_atomically(directory / "report.html", render(facts, drawn))


def render(facts: RunFacts, drawn: dict[str, Figure] | None = None) -> str:
    """The whole page, its figures drawn where they are not given."""
    template = templates(autoescape=True).get_template("report.html.j2")
    return template.render(**contents(facts), figures=draw(facts) if drawn is None else drawn)


@cache
def templates(*, autoescape: bool) -> Environment:
    """Where the templates are, with the words of numbers as filters; compiled once a process."""
    environment = Environment(
        loader=PackageLoader("loratune.reporting"),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "rate": wording.rate,
        "count": wording.count,
        "duration": wording.duration,
        "size": wording.size,
        "breakable": _breakable,
        "md": _escaped,
        "share": _share,
    }
    return environment


def _breakable(text: str) -> Markup:
    """A name that may wrap after each underscore."""
    return Markup("_<wbr>").join(text.split("_"))


def draw(facts: RunFacts) -> dict[str, Figure]:
    """The page's figures, which takes seconds.

    Raises `ImportError` with a sentence to pass on where matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ImportError(
            "report.html needs matplotlib, which is not installed; pip install 'loratune[report]'."
        )
    own, single = own_rate_curve(facts), single_rate_curve(facts)
    shown = facts.shown_metric
    metric = own_rate_curve(facts, facts.info(shown)) if shown else None
    cells, alphas, curves, gap = batch_cells(facts), alpha_points(facts), learning_curves(facts), gaps(facts)
    costs = [each for each in stage_costs(facts) if each.trials or each.planned_trials]
    cut, packs = facts.truncation, facts.cost.packs
    no_rank = takeaways.missing(facts, Stage.RANK)
    return {
        "own": _figure(
            len(own.points) > 1,
            lambda: figures.rank_figure("own", own, facts),
            "Validation loss of each rank at its own learning rate",
            "",
            no_rank,
        ),
        "single": _figure(
            bool(single.points),
            lambda: figures.rank_figure("single", single, facts, own),
            "Validation loss of all ranks at one learning rate",
            "",
            "No learning rate was tried at three ranks or more.",
        ),
        "metric": _figure(
            metric is not None and len({point.measured.value for point in metric.points}) > 1,
            lambda: figures.rank_figure("metric", metric, facts),  # type: ignore[arg-type]
            "Task metric against rank",
            takeaways.metric_sentence(metric) if metric else "",
            (takeaways.metric_sentence(metric) or no_rank)
            if metric
            else "No task metric was measured beside the NLL.",
        ),
        "truncation": _figure(
            cut is not None,
            lambda: figures.truncation_figure(cut, own),  # type: ignore[arg-type]
            "Validation loss of the largest adapter, cut to lower ranks",
            truncation_sentence(cut) if cut else "",
            "The search kept no adapter to cut: no rank was trained on all rows.",
        ),
        "batch": _figure(
            bool(cells),
            lambda: figures.batch_figure(cells, facts),
            "Validation loss by learning rate and batch size",
            takeaways.batch_sentence(cells),
            takeaways.missing(facts, Stage.BATCH),
        ),
        "alpha": _figure(
            bool(alphas),
            lambda: figures.alpha_figure(alphas, facts),
            "Validation loss against alpha",
            takeaways.alpha_sentence(alphas, facts),
            takeaways.missing(facts, Stage.ALPHA),
        ),
        "curves": _figure(
            bool(curves),
            lambda: figures.curves_figure(curves),
            "Validation loss during training",
            takeaways.curves_sentence(facts),
            "No trial has a learning curve.",
        ),
        "gap": _figure(
            bool(gap),
            lambda: figures.gap_figure(gap),
            "Training and validation loss by rank",
            takeaways.gap_sentence(gap),
            no_rank,
        ),
        "cost": _figure(
            bool(costs), lambda: figures.cost_figure(costs), "Time by stage", "", "No trial was run."
        ),
        "packs": _figure(
            bool(packs),
            lambda: figures.packs_figure(packs),
            "Trials that trained side by side",
            takeaways.packs_sentence(packs),
            "How full the packs were was not kept.",
        ),
    }


def _figure(there: bool, make: Callable[[], Drawing], title: str, sentence: str, reason: str) -> Figure:
    """The sentence is the figure's description, too."""
    return Figure(sentence=sentence, html=make().svg(title, sentence)) if there else Figure(sentence=reason)


_MARKS = re.compile(r"([\\`*_{}\[\]<>#|~])")
"""Letters that mean something in Markdown."""


def to_markdown(facts: RunFacts) -> str:
    """The page's words and tables, without its figures; everything from outside is escaped."""
    text = templates(autoescape=False).get_template("report.md.j2").render(**contents(facts))
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def to_json(facts: RunFacts) -> str:
    """All facts, and for each trial all but the values of single rows."""
    trials = [event_values(TrialEnded.of(each)) for each in facts.results]
    for trial in trials:
        del trial["event"]
    return dumps({**finite(to_stored(facts)), "trials": trials}, indent=1, allow_nan=False) + "\n"


def _escaped(text: object) -> str:
    """The text on one line, with no letter that Markdown or a table would take for its own."""
    return _MARKS.sub(r"\\\1", " ".join(str(text).split()))


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"
