"""`report.html`: one file that opens offline, from facts alone. jinja2 escapes everything from outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from loratune.files.write import write_atomically
from loratune.reporting import answer, figures, takeaways, wording
from loratune.reporting.facts import RunFacts
from loratune.reporting.impacts import HEADS, impact_table
from loratune.reporting.later_stages import alpha_points, batch_cells, stage_costs
from loratune.reporting.opponent import fair_opponent
from loratune.reporting.rank_curves import gaps, learning_curves, own_rate_curve, single_rate_curve
from loratune.reporting.tables import (
    divergence_sentence,
    evidence_number,
    health_lines,
    length_bars,
    score_table,
    survey_lines,
    value_tiles,
)
from loratune.reporting.timeline import timeline_parts
from loratune.reporting.truncation import truncation_figure, truncation_sentence
from loratune.reporting.wording import MARKS, states, sureness
from loratune.values import Evidence, Stage

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """A figure with its sentence, or the sentence that says why there is none."""

    sentence: str
    html: Markup | None = None


def write_html(facts: RunFacts, directory: Path) -> Path:
    """Write `report.html`. Raises `ImportError` with a sentence to pass on where plotly is not installed."""
    if find_spec("plotly") is None:
        raise ImportError("report.html needs plotly, which is not installed; pip install 'loratune[report]'.")
    return write_atomically(directory / "report.html", render(facts))


def render(facts: RunFacts) -> str:
    """The whole page."""
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("loratune.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "rate": wording.rate,
        "count": wording.count,
        "duration": wording.duration,
        "size": wording.size,
    }
    own, single = own_rate_curve(facts), single_rate_curve(facts)
    heads, rows = score_table(facts)
    return environment.get_template("report.html.j2").render(
        facts=facts,
        title=f"{facts.model} on {facts.data}",
        values=facts.decision.hyper_parameters,
        tiles=value_tiles(facts),
        gains=[_sentence(takeaways.gain_sentence(gain)) for gain in takeaways.all_gains(facts)],
        table_caption="The test split was read once, after all choices." if facts.recommended.test else "",
        table_heads=heads,
        table_rows=rows,
        verdict=answer.verdict(facts),
        sureness=_sentence(sureness(facts)),
        cost_sentence=takeaways.cost_sentence(facts),
        recipe_sentence=answer.recipe_sentence(facts),
        opponent_sentence=fair_opponent(facts).sentence,
        timeline=timeline_parts(facts.cost),
        timeline_sentence=takeaways.timeline_sentence(facts),
        evidence=[_evidence(state, each) for state, each in states(facts)],
        rank_sentence=takeaways.rank_sentence(own, single, facts),
        interval_sentence=takeaways.interval_sentence(own),
        figures=_figures(facts),
        health=health_lines(facts),
        divergences=divergence_sentence(facts),
        impact_heads=HEADS,
        impacts=impact_table(facts),
        costs=stage_costs(facts),
        survey=[*survey_lines(facts.profile), *facts.profile.warnings],
        leaks=facts.profile.leak_examples,
        lengths=length_bars(facts.profile),
        snippet=_snippet(facts),
        plotly_js=Markup(get_plotlyjs().replace("</script", "<\\/script")),
    )


def _figures(facts: RunFacts) -> dict[str, Drawn]:
    own, single = own_rate_curve(facts), single_rate_curve(facts)
    shown = facts.shown_metric
    metric = own_rate_curve(facts, facts.info(shown)) if shown else None
    cells, alphas, curves, gap = batch_cells(facts), alpha_points(facts), learning_curves(facts), gaps(facts)
    costs, cut = stage_costs(facts), facts.truncation
    no_rank = takeaways.missing(facts, Stage.RANK)
    return {
        "own": _drawn(len(own.points) > 1, lambda: figures.rank_figure(own, facts), "", no_rank),
        "single": _drawn(
            bool(single.points),
            lambda: figures.rank_figure(single, facts, own),
            "",
            "No learning rate was tried at three ranks or more.",
        ),
        "metric": _drawn(
            metric is not None and len(metric.points) > 1,
            lambda: figures.rank_figure(metric, facts),  # type: ignore[arg-type]
            takeaways.metric_sentence(metric) if metric else "",
            no_rank if metric else "No task metric was measured beside the NLL.",
        ),
        "truncation": _drawn(
            cut is not None,
            lambda: truncation_figure(cut, own),  # type: ignore[arg-type]
            truncation_sentence(cut) if cut else "",
            "The search kept no adapter to cut: no rank was trained on all rows.",
        ),
        "batch": _drawn(
            bool(cells),
            lambda: figures.batch_figure(cells, facts),
            takeaways.batch_sentence(cells),
            takeaways.missing(facts, Stage.BATCH),
        ),
        "alpha": _drawn(
            bool(alphas),
            lambda: figures.alpha_figure(alphas, facts),
            takeaways.alpha_sentence(alphas, facts),
            takeaways.missing(facts, Stage.ALPHA),
        ),
        "curves": _drawn(
            bool(curves),
            lambda: figures.curves_figure(curves),
            takeaways.curves_sentence(facts),
            "No trial has a learning curve.",
        ),
        "gap": _drawn(bool(gap), lambda: figures.gap_figure(gap), takeaways.gap_sentence(gap), no_rank),
        "cost": _drawn(
            bool(costs),
            lambda: figures.cost_figure(costs),
            takeaways.cost_sentence(facts),
            "No trial was run.",
        ),
    }


def _drawn(there: bool, make: Callable[[], Figure], sentence: str, reason: str) -> Drawn:
    if not there:
        return Drawn(sentence=reason)
    html = make().to_html(
        full_html=False,
        include_plotlyjs=False,
        config={"displaylogo": False, "displayModeBar": False, "responsive": True},
    )
    return Drawn(sentence=sentence, html=Markup(html))


def _evidence(state: str, each: Evidence) -> dict[str, Any]:
    return {
        "mark": MARKS[state],
        "state": state,
        "kind": state.replace(" ", "-"),
        "claim": _sentence(each.claim),
        "number": evidence_number(each),
    }


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _snippet(facts: RunFacts) -> str:
    """How to load the adapter; a GGUF file is loaded through its folder."""
    path = Path(facts.model)
    base = f"{facts.model!r}" if path.suffix != ".gguf" else f"{str(path.parent)!r}, gguf_file={path.name!r}"
    return f"""\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained({base})
tokenizer = AutoTokenizer.from_pretrained({base})
model = PeftModel.from_pretrained(base, {facts.directory + "/adapter"!r})
model = model.merge_and_unload()  # optional: no LoRA cost at inference"""
