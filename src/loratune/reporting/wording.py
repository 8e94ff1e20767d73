"""The words of a report: durations, sizes, learning rates, intervals, and the three answers of evidence."""

from __future__ import annotations

from collections import Counter
from math import isfinite

from loratune.reporting.facts import RunFacts
from loratune.values import Evidence, HyperParameters


def duration(seconds: float) -> str:
    """`48 s`, `7.5 min`, `2.1 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def money(seconds: float, per_hour: float) -> str:
    """What this time costs, in the user's own currency: `0.0042`, `0.31`, `12.40`; empty without a price."""
    if per_hour <= 0:
        return ""
    amount = price(seconds, per_hour)
    return f"{amount:.2f}" if amount >= 0.1 or not amount else f"{amount:.2g}"


def price(seconds: float, per_hour: float) -> float:
    """Price in the currency of the price of an hour."""
    return seconds * per_hour / 3600


def size(count: int) -> str:
    """Bytes in binary units."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def count(value: float) -> str:
    """`950`, `4.9k`, `3.1M`, `2.4B`."""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.0f}"


def rate(learning_rate: float) -> str:
    """`1e-4`, `3.5e-4`: two digits, no padding zeros."""
    mantissa, exponent = f"{learning_rate:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def setting_words(values: HyperParameters) -> str:
    """`rank 8, learning rate 1e-3, batch size 16, alpha 16`."""
    return (
        f"rank {values.r}, learning rate {rate(values.learning_rate)}, batch size {values.batch_size}, "
        f"alpha {values.lora_alpha:g}{variant(values)}"
    )


def variant(values: HyperParameters) -> str:
    """`, DoRA`: what an adapter is beside plain LoRA, for the end of a list; empty where it is nothing else."""
    return f", {values.variant}" if values.variant else ""


def number(value: float | None, digits: int = 4) -> str:
    """Four significant digits; a dash where there is no number."""
    if value is None or not isfinite(value):
        return "–"
    return f"{value:.{digits}g}"


def interval(bounds: tuple[float, float] | None, digits: int = 3) -> str:
    """`[-0.002, 0.004]`; one-sided bounds as `≤ 0.004` and `≥ -0.002`; empty without one."""
    if bounds is None or not any(map(isfinite, bounds)):
        return ""
    low, high = bounds
    if not isfinite(low):
        return f"≤ {high:.{digits}g}"
    if not isfinite(high):
        return f"≥ {low:.{digits}g}"
    return f"[{low:.{digits}g}, {high:.{digits}g}]"


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
    """What was tested and left open is `cannot tell`; the rest is a note.

    Tested is what has a margin or an interval, and a bracket of learning rates, which has neither.
    """
    if evidence.holds is not None:
        return YES if evidence.holds else NO
    bracket = evidence.unit == "learning rate"
    tested = bracket or evidence.margin is not None or evidence.interval is not None
    return CANNOT_TELL if tested else NOTE


def by_weight(verdicts: list[tuple[str, Evidence]]) -> list[tuple[str, Evidence]]:
    """What was answered first, notes last."""
    return sorted(verdicts, key=lambda pair: _ORDER.index(pair[0]))


def sureness(facts: RunFacts) -> str:
    """`5 claims tested: 3 yes, 1 no, 1 cannot tell; more budget could change the answer.`"""
    counted = Counter(state for state, _ in states(facts) if state != NOTE)
    total = counted.total()
    claims = "claim" if total == 1 else "claims"
    parts = [f"{counted[state]} {state}" for state in (YES, NO, CANNOT_TELL) if counted[state]]
    verdicts = f"{total} {claims} tested: {', '.join(parts)}" if total else "no claim was tested"
    if facts.stopped:
        return f"{verdicts}; the search was stopped by request, so more of it could change the answer."
    if facts.cut_by_clock:
        return f"{verdicts}; the clock cut the search, so more time could change the answer."
    if not facts.decision.settled:
        return f"{verdicts}; the search was not settled, so more budget could change the answer."
    return f"{verdicts}; the search ran to its planned end."


GLOSSARY: tuple[tuple[str, str], ...] = (
    ("adapter", "The small set of weights that was trained beside the frozen base model; the base is unchanged."),
    ("rank (r)", "How many directions the adapter may add to each layer: twice the rank, twice the weights."),
    ("alpha", "The adapter's strength: what it adds is multiplied by alpha / r."),
    ("learning rate", "How far each step moves the weights. Too small learns little, too large diverges."),
    ("batch size", "Rows that are read before the weights move once."),
    ("epoch", "One reading of all training rows."),
    ("validation and test rows", "Rows that were never trained on. The search chose by the validation rows; the test "
     "rows were scored once, when all was chosen."),
    ("NLL, nats per token", "How surprised the model is by the right text, on average for each token: 0 is certain, "
     "0.7 is a coin's toss. Lower is better."),
    ("macro-F1", "Accuracy that counts every class alike, however rare."),
    ("exact match", "Share of the rows whose text would be given word for word."),
    ("default recipe", "Usual settings without a search (rank 16, learning rate 2e-4), trained beside the answer."),
    ("margin", "The loss of quality that you tolerate. A smaller rank within it is chosen, as it costs less."),
    ("non-inferior, adequate", "Shown to lie within the margin of the largest rank, with 95 % confidence."),
    ("95 % interval", "Where the true value lies in 95 of 100 such measurements. If it holds 0, the difference may "
     "be chance."),
    ("seed", "The draw of first weights and order of rows. Two seeds differ by chance alone."),
    ("trial, pack", "One set of hyper-parameters trained once; trials that were trained side by side, each as if "
     "alone."),
    ("full run", "The cost of training the default recipe once on all rows: the unit of the budget."),
    ("diverged", "The loss grew without end; such a learning rate is too large."),
)  # fmt: skip
"""(word, what it means), in the order in which a reader meets them."""
