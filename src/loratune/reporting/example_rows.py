"""Ten test rows as people read them: what was asked, what is right, what each model says."""

from __future__ import annotations

from dataclasses import dataclass

from loratune.reporting.facts import RunFacts
from loratune.values.held_out import Change, ExampleRow, Reading

_MARKS = {
    Change.BETTER: "yes",
    Change.WORSE: "no",
    Change.STILL_WRONG: "cannot-tell",
    Change.STILL_RIGHT: "note",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownRow:
    """One row, knowing no markup."""

    change: str
    kind: str
    """As of evidence: `yes`, `no`, `cannot-tell`, `note`."""
    prompt: str
    expected: str
    recommended: str
    base: str


def shown_rows(facts: RunFacts) -> list[ShownRow]:
    """Those that better, those that got worse, those that are still wrong."""
    if facts.held_out is None:
        return []
    return [_shown(each) for each in facts.held_out.examples]


def rows_sentence(facts: RunFacts) -> str:
    """How many rows changed how; empty where it is not known."""
    found = facts.held_out
    if found is None or not found.counts:
        return ""
    labelled = bool(found.recommended)
    words = {
        Change.BETTER: "right now and wrong before" if labelled else "likelier now",
        Change.WORSE: "wrong now and right before" if labelled else "less likely now",
        Change.STILL_WRONG: "still wrong",
        Change.STILL_RIGHT: "right before and now",
    }
    told = ", ".join(f"{rows} {words[change]}" for change, rows in found.counts if rows)
    whole = sum(rows for _, rows in found.counts)
    return (
        f"Of {whole} test rows, the untrained model beside the adapter: {told}. "
        f"Shown are {len(found.examples)} of them, those that changed most and those that are furthest from right."
    )


def _shown(each: ExampleRow) -> ShownRow:
    return ShownRow(
        change=each.change,
        kind=_MARKS[each.change],
        prompt=each.prompt,
        expected=each.expected,
        recommended=_said(each.recommended),
        base=_said(each.base),
    )


def _said(reading: Reading) -> str:
    loss = f"NLL {reading.nll:.3f}"
    if reading.answer:
        return f"{reading.answer} {'✓' if reading.right else '✗'} ({loss})"
    return f"{loss}, word for word" if reading.right else loss
