"""Each piece of evidence as one of three answers, in words: yes, no, cannot tell. Notes ask nothing."""

from __future__ import annotations

from collections import Counter

from loratune.reporting.facts import RunFacts
from loratune.values import Evidence

YES, NO, CANNOT_TELL, NOTE = "yes", "no", "cannot tell", "note"
MARKS = {YES: "✓", NO: "✗", CANNOT_TELL: "?", NOTE: "–"}
_ORDER = (YES, NO, CANNOT_TELL, NOTE)


def states(facts: RunFacts) -> list[tuple[str, Evidence]]:
    """(state, evidence) in the decision's order."""
    found = {each.sentence for each in facts.diagnoses or ()}
    return [
        (NOTE if each.holds is None and each.claim in found else state_of(each), each)
        for each in facts.decision.evidence
    ]


def state_of(evidence: Evidence) -> str:
    """What was tested and left open cannot be told; the rest is a note.

    Tested is what has a margin or an interval, and a bracket of learning rates, which has neither.
    """
    if evidence.holds is not None:
        return YES if evidence.holds else NO
    bracket = evidence.unit == "learning rate"
    tested = bracket or evidence.margin is not None or evidence.interval is not None
    return CANNOT_TELL if tested else NOTE


def by_weight(told: list[tuple[str, Evidence]]) -> list[tuple[str, Evidence]]:
    """What was answered first, notes last."""
    return sorted(told, key=lambda pair: _ORDER.index(pair[0]))


def sureness(facts: RunFacts) -> str:
    """`5 claims tested: 3 yes, 1 no, 1 cannot tell; more budget could change the answer.`"""
    counted = Counter(state for state, _ in states(facts) if state != NOTE)
    total = counted.total()
    claims = "claim" if total == 1 else "claims"
    parts = [f"{counted[state]} {state}" for state in (YES, NO, CANNOT_TELL) if counted[state]]
    told = f"{total} {claims} tested: {', '.join(parts)}" if total else "no claim was tested"
    if facts.cut_by_clock:
        return f"{told}; the clock cut the search, so more time could change the answer."
    if not facts.decision.settled:
        return f"{told}; the search was not settled, so more budget could change the answer."
    return f"{told}; the search had nothing more to ask."
