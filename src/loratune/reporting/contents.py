"""All that a page says beside its figures, as plain values for the templates. Knows no markup."""

from __future__ import annotations

from dataclasses import dataclass
from json import dumps
from pathlib import Path
from shlex import quote
from typing import Any

from loratune.reporting import answer, takeaways
from loratune.reporting.facts import RunFacts
from loratune.reporting.held_out import class_scores, matrix, mistakes, rows_sentence, shown_rows
from loratune.reporting.impacts import HEADS, impact_table
from loratune.reporting.later_stages import stage_costs
from loratune.reporting.opponent import fair_opponent
from loratune.reporting.rank_curves import own_rate_curve, single_rate_curve
from loratune.reporting.result import result_values
from loratune.reporting.tables import (
    divergence_sentence,
    evidence_number,
    health_lines,
    length_bars,
    predictions,
    recipe_table,
    score_table,
    survey_lines,
    timeline_parts,
    value_tiles,
)
from loratune.reporting.wording import GLOSSARY, MARKS, NOTE, rate, states, sureness
from loratune.values import Evidence, Stage, StageSummary


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What a stage asked, and what came of it."""

    stage: str
    question: str
    answer: str


def contents(facts: RunFacts) -> dict[str, Any]:
    """Values by the names that the templates use."""
    own, single = own_rate_curve(facts), single_rate_curve(facts)
    heads, rows = score_table(facts)
    values = facts.decision.hyper_parameters
    return {
        "facts": facts,
        "title": f"{facts.model} on {facts.data}",
        "heading": f"Rank {values.r}, learning rate {rate(values.learning_rate)}, batch size {values.batch_size}",
        "verdict": answer.verdict(facts),
        "sureness": sentence(sureness(facts)),
        "cost_sentence": takeaways.cost_sentence(facts),
        "rows": shown_rows(facts),
        "rows_sentence": rows_sentence(facts),
        "tiles": value_tiles(facts),
        "gains": [sentence(takeaways.gain_sentence(gain)) for gain in takeaways.all_gains(facts)],
        "table_caption": "The test split was read once, after all choices." if facts.recommended.test else "",
        "table_heads": heads,
        "table_rows": rows,
        "recipe": recipe_table(facts),
        "recipe_sentence": answer.recipe_sentence(facts),
        "opponent_sentence": fair_opponent(facts).sentence,
        "evidence": [_evidence(state, each) for state, each in states(facts) if state != NOTE],
        "questions": questions(facts),
        "health": health_lines(facts),
        "divergences": divergence_sentence(facts),
        **_classes(facts),
        "rank_sentence": takeaways.rank_sentence(own, single, facts),
        "interval_sentence": takeaways.interval_sentence(own),
        "impact_heads": HEADS,
        "impacts": impact_table(facts),
        "predictions": predictions(facts.cost),
        "timeline": timeline_parts(facts.cost),
        "timeline_sentence": takeaways.timeline_sentence(facts),
        "costs": stage_costs(facts),
        "notes": notes(facts),
        "survey": [*survey_lines(facts.profile), *facts.profile.warnings],
        "leaks": facts.profile.leak_examples,
        "lengths": length_bars(facts.profile),
        "snippet": _snippet(facts),
        "config": dumps(result_values(facts)["recommended"], indent=2),
        "command": f"loratune tune --config {quote(facts.directory + '/loratune.toml')} --out runs/again",
        "next_command": answer.next_command(facts),
        "glossary": GLOSSARY,
    }


def notes(facts: RunFacts) -> list[str]:
    """The plan's reductions, the run's notes, and claims that ask nothing; what the curves say stands with them."""
    signs = {_bare(each.sentence) for each in facts.diagnoses or ()}
    claimed = [each.claim for state, each in states(facts) if state == NOTE]
    found: dict[str, str] = {}
    for text in (*facts.plan.dropped, *facts.notes, *claimed):
        if _bare(text) not in signs:
            found.setdefault(_bare(text), f"{text[:1].upper()}{text[1:].rstrip('.')}.")
    return list(found.values())


def _bare(text: str) -> str:
    return text.strip().rstrip(".").casefold()


def questions(facts: RunFacts) -> list[Question]:
    """Every stage that was planned or run, in their order; one that never came says so."""
    answered = {each.name: each for each in facts.decision.stages}
    planned = {each.name: each for each in facts.plan.stages}
    return [
        Question(
            stage=name,
            question=(answered.get(name) or planned[name]).question,
            answer=_answer(name, answered.get(name), facts),
        )
        for name in dict.fromkeys((*planned, *answered))
    ]


def _answer(name: str, summary: StageSummary | None, facts: RunFacts) -> str:
    if summary is not None and summary.answer:
        return sentence(summary.answer)
    return takeaways.missing(facts, Stage(name)) if name in set(Stage) else "Not run."


def sentence(text: str) -> str:
    """The text with a capital and a full stop."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _evidence(state: str, each: Evidence) -> dict[str, Any]:
    return {
        "mark": MARKS[state],
        "state": state,
        "kind": state.replace(" ", "-"),
        "claim": sentence(each.claim),
        "number": evidence_number(each),
    }


def _classes(facts: RunFacts) -> dict[str, Any]:
    found, labels = facts.held_out, facts.profile.labels
    if found is None or not found.recommended:
        return {"scores": [], "matrix": None, "mistakes": []}
    return {
        "scores": class_scores(labels, found.recommended, found.base),
        "matrix": matrix(labels, found.recommended),
        "mistakes": mistakes(labels, found.recommended),
    }


def _snippet(facts: RunFacts) -> str:
    """How to load the adapter; a GGUF file is loaded through its folder."""
    path = Path(facts.model)
    base = f"{facts.model!r}" if path.suffix != ".gguf" else f"{str(path.parent)!r}, gguf_file={path.name!r}"
    if facts.training is not None and (kind := facts.training.classifier) is not None:
        return f"""\
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({facts.directory + "/adapter"!r})
base = AutoModelForSequenceClassification.from_pretrained(
    {facts.model!r}, num_labels={kind.outputs}, pad_token_id=tokenizer.pad_token_id
)
model = PeftModel.from_pretrained(base, {facts.directory + "/adapter"!r})  # its head comes from the adapter"""
    return f"""\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained({base})
tokenizer = AutoTokenizer.from_pretrained({base})
model = PeftModel.from_pretrained(base, {facts.directory + "/adapter"!r})
model = model.merge_and_unload()  # optional: no LoRA cost at inference"""
