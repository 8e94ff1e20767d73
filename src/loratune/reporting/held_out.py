"""What the models say to the test rows: some rows to be read, and the classes of all. Knows no markup."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from loratune.metrics import NLL
from loratune.reporting.answer import head_answers, learns_numbers, learns_pairs
from loratune.reporting.facts import RunFacts
from loratune.values.analysis import Change, Confusion, ExampleRow, Reading

SHOWN = 12
"""Classes of a matrix, at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassScore:
    """One class on the test rows; shares are None where nothing is there to be shared."""

    label: str
    rows: int
    precision: float | None
    """Share of the rows predicted as this class that are of it."""
    recall: float | None
    """Share of the class's rows that were found."""
    base_recall: float | None
    """The untrained model's."""

    @property
    def f1(self) -> float:
        """0 where nothing was found."""
        if not self.precision or not self.recall:
            return 0.0
        return 2 * self.precision * self.recall / (self.precision + self.recall)


@dataclass(frozen=True, kw_only=True, slots=True)
class Matrix:
    """Rows are true classes, columns predicted ones."""

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    """[true, predicted]; the last column is everything else, where not all classes are shown."""
    complete: bool


def class_scores(
    labels: Sequence[str], found: Sequence[Confusion], base: Sequence[Confusion]
) -> list[ClassScore]:
    """One a class that came, the worst F1 first."""
    true, taken, hits, _ = _sums(found)
    base_true, _, base_hits, _ = _sums(base)
    scores = [
        ClassScore(
            label=labels[i],
            rows=true[i],
            precision=_share(hits[i], taken[i]),
            recall=_share(hits[i], true[i]),
            base_recall=_share(base_hits[i], base_true[i]),
        )
        for i in sorted(set(true) | set(taken))
    ]
    return sorted(scores, key=lambda each: (each.f1, each.label))


def matrix(labels: Sequence[str], found: Sequence[Confusion], shown: int = SHOWN) -> Matrix:
    """The matrix of all classes, or of those with most mistakes where they are more than `shown`."""
    true, taken, _, mistakes = _sums(found)
    classes = sorted(set(true) | set(taken))
    chosen = sorted(sorted(classes, key=lambda i: -mistakes[i])[:shown])
    counts = {(each.true, each.predicted): each.rows for each in found}
    complete = len(chosen) == len(classes)
    lines = []
    for i in chosen:
        line = [counts.get((i, j), 0) for j in chosen]
        lines.append(tuple(line if complete else [*line, true[i] - sum(line)]))
    return Matrix(labels=tuple(labels[i] for i in chosen), counts=tuple(lines), complete=complete)


def mistakes(labels: Sequence[str], found: Sequence[Confusion], most: int = 5) -> list[tuple[str, str, int]]:
    """(true, predicted, rows), the most frequent first."""
    wrong = sorted((each for each in found if each.true != each.predicted), key=lambda each: -each.rows)
    return [(labels[each.true], labels[each.predicted], each.rows) for each in wrong[:most]]


def _sums(found: Sequence[Confusion]) -> tuple[Counter[int], Counter[int], Counter[int], Counter[int]]:
    """By class: rows that are it, are taken for it, both, and mistakes that it has a part in."""
    true: Counter[int] = Counter()
    taken: Counter[int] = Counter()
    hits: Counter[int] = Counter()
    wrong: Counter[int] = Counter()
    for each in found:
        true[each.true] += each.rows
        taken[each.predicted] += each.rows
        if each.true == each.predicted:
            hits[each.true] += each.rows
        else:
            wrong[each.true] += each.rows
            wrong[each.predicted] += each.rows
    return true, taken, hits, wrong


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


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
    """The kind of evidence: `yes`, `no`, `cannot-tell`, `note`."""
    prompt: str
    expected: str
    recommended: str
    base: str


def shown_rows(facts: RunFacts) -> list[ShownRow]:
    """The rows that improved, those that got worse, those that are still wrong."""
    if facts.held_out is None:
        return []
    loss = "squared error" if learns_numbers(facts) else "loss" if learns_pairs(facts) else NLL.info.title
    right = "preferred" if learns_pairs(facts) else "word for word"
    return [_shown(each, loss, right) for each in facts.held_out.examples]


def rows_sentence(facts: RunFacts) -> str:
    """How many rows changed how; empty where it is not known."""
    found = facts.held_out
    if found is None or not found.counts:
        return ""
    labelled = bool(found.recommended)
    better, worse = "likelier now", "less likely now"
    if learns_numbers(facts):
        better, worse = "nearer now", "further off now"
    elif learns_pairs(facts):
        better, worse = "better told apart now", "worse told apart now"
    words = {
        Change.BETTER: "right now and wrong before" if labelled else better,
        Change.WORSE: "wrong now and right before" if labelled else worse,
        Change.STILL_WRONG: "still wrong",
        Change.STILL_RIGHT: "right before and now",
    }
    changes_in_words = ", ".join(f"{rows} {words[change]}" for change, rows in found.counts if rows)
    whole = sum(rows for _, rows in found.counts)
    written = not head_answers(facts) and any(
        each.recommended.text or each.base.text for each in found.examples
    )
    return (
        f"Of {whole} test rows, the untrained model beside the adapter: {changes_in_words}. "
        f"Shown are {len(found.examples)} of them, those that changed most and those that are furthest from right"
        f"{', with what each model writes there by itself' if written else ''}."
    )


def _shown(each: ExampleRow, loss: str, right: str) -> ShownRow:
    return ShownRow(
        change=each.change,
        kind=_MARKS[each.change],
        prompt=each.prompt,
        expected=each.expected,
        recommended=_said(each.recommended, loss, right),
        base=_said(each.base, loss, right),
    )


def _said(reading: Reading, title: str, right: str) -> str:
    loss = f"{title} {reading.nll:.3f}"
    label = f"{reading.answer} {'✓' if reading.right else '✗'}" if reading.answer else ""
    if reading.text:
        return f"{reading.text} ({f'likeliest label {label}, ' if label else ''}{loss})"
    if label:
        return f"{label} ({loss})"
    return f"{loss}, {right}" if reading.right else loss
