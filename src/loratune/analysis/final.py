"""The comparison of the final run: its models and their scores, and the test rows behind them.

Trains and decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from loratune.analysis.written import Decoder
from loratune.data.table import TokenTable
from loratune.data.turns import last_turn
from loratune.lora.layout import Adapter
from loratune.metrics import PREDICTION, right_rows
from loratune.runners.runner import AdapterFile
from loratune.values import Classifier, Problem, TrialResult
from loratune.values.analysis import Change, Confusion, ExampleRow, HeldOut, Reading


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitScores:
    """A model on a split."""

    metrics: dict[str, float]
    example_nll: npt.NDArray[np.float64]
    """[rows] nats, summed over each row's supervised tokens."""
    example_scores: dict[str, npt.NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True, eq=False)
class FinalModel:
    """One model of the comparison; the base model has neither adapter nor result."""

    validation: SplitScores | None
    test: SplitScores
    adapter: Adapter | None = None
    file: AdapterFile | None = None
    """Where the adapter is while the final run lasts."""
    result: TrialResult | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Final:
    """The comparison of the final run."""

    recommended: FinalModel
    default_recipe: FinalModel | None
    """None where it diverged or was not asked for."""
    base_model: FinalModel
    before: float
    """NLL of the base model on the rows that early stopping looked at."""
    notes: tuple[str, ...] = ()

    @property
    def adapter(self) -> Adapter:
        assert self.recommended.adapter is not None
        return self.recommended.adapter

    @property
    def file(self) -> AdapterFile:
        """The adapter's, while the final run lasts."""
        assert self.recommended.file is not None
        return self.recommended.file


EXAMPLES = 10
_SHARES = ((Change.BETTER, 4), (Change.WORSE, 3), (Change.STILL_WRONG, 3), (Change.STILL_RIGHT, 0))
_LETTERS = 320
"""Letters shown of a text."""
Ints = npt.NDArray[np.int64]


Writer = Callable[[Sequence[int]], Sequence[tuple[str, str]]]
"""Gives what the recommended adapter and the base model write for examples of the test split; empty: nothing."""


def held_out(
    final: Final,
    table: TokenTable,
    tokenizer: Decoder,
    labels: Sequence[str],
    write: Writer | None = None,
    kind: Classifier | None = None,
) -> HeldOut:
    """Ten rows of the test split `table` whose likelihood changed most, and all its classes.

    Where a kind of change has too few rows, others take its places; the order is that of `Change`. `write` says what
    the models write on them, where labels do not. `kind`: what a trained head answers, with the unit that it learnt
    numbers in; those of the table are in the user's.
    """
    ours, base = final.recommended.test, final.base_model.test
    if not len(table):
        return HeldOut()
    weights, table = table.weights, table.firsts  # of a pair the preferred answer is shown
    answers = [_Answers(each, table, weights, labels, kind) for each in (ours, base)]
    chosen = _chosen(table, *answers)
    texts = [] if write is None else write([row for row, _ in chosen])
    return HeldOut(
        examples=tuple(
            _example(
                row, change, table, tokenizer, labels, answers, texts[place] if texts else ("", ""), kind
            )
            for place, (row, change) in enumerate(chosen)
        ),
        counts=_counts(_changes(*answers)),
        recommended=_confusions(answers[0].predicted, table),
        base=_confusions(answers[1].predicted, table),
    )


class _Answers:
    """One model's scores on all rows."""

    def __init__(
        self,
        scored: SplitScores,
        table: TokenTable,
        weights: npt.NDArray[np.float64],
        labels: Sequence[str],
        kind: Classifier | None,
    ) -> None:
        self.texts = _head_answers(scored, kind)
        self.nll = scored.example_nll / np.maximum(1, weights)
        found = scored.example_scores.get(PREDICTION)
        labelled = found is not None and table.row_labels is not None and bool(labels)
        self.predicted = found.astype(np.int64) if labelled and found is not None else None
        if self.predicted is not None:
            self.right = self.predicted == table.row_labels
        else:
            right = right_rows(scored.example_scores)
            self.right = np.zeros(len(table), bool) if right is None else right

    def reading(self, row: int, labels: Sequence[str], text: str) -> Reading:
        answer = "" if self.predicted is None else labels[int(self.predicted[row])]
        text = self.texts[row] if self.texts else text
        return Reading(nll=float(self.nll[row]), right=bool(self.right[row]), answer=answer, text=_cut(text))


def _head_answers(scored: SplitScores, kind: Classifier | None) -> list[str]:
    """A head's answers that are no single class, in the user's unit; empty where there are none."""
    number = kind is not None and kind.problem is Problem.NUMBER
    found = scored.example_scores.get("correlation" if number else PREDICTION)
    if kind is None or kind.problem is Problem.ONE or found is None:
        return []
    return _as_texts(kind, kind.centre + kind.scale * found if number else found)


def _as_texts(kind: Classifier, values: npt.NDArray[Any]) -> list[str]:
    """Numbers [rows], or of several labels [rows, labels] those that hold."""
    if kind.problem is Problem.NUMBER:
        return [f"{float(value):.4g}" for value in values]
    return [", ".join(kind.labels[i] for i in np.flatnonzero(row)) or "no label" for row in values]


def _changes(ours: _Answers, base: _Answers) -> list[Change]:
    """Rows to show: by right and wrong where the answer changed, else by the likelihood of what is still wrong."""
    found = []
    for mine, theirs, gained in zip(ours.right, base.right, base.nll > ours.nll, strict=True):
        if mine != theirs:
            found.append(Change.BETTER if mine else Change.WORSE)
        elif mine:
            found.append(Change.STILL_RIGHT)
        elif ours.predicted is not None:
            found.append(Change.STILL_WRONG)
        else:  # a long completion is hardly ever right to the last token
            found.append(Change.BETTER if gained else Change.WORSE)
    return found


def _chosen(table: TokenTable, ours: _Answers, base: _Answers) -> list[tuple[int, Change]]:
    """(row, change), those first that changed most; of what is still wrong, the least likely. None twice."""
    first = {table.row(i)[0].tobytes(): i for i in reversed(range(len(table)))}
    changes = _changes(ours, base)
    moved = np.abs(base.nll - ours.nll)
    merit = {
        Change.BETTER: moved,
        Change.WORSE: moved,
        Change.STILL_WRONG: ours.nll,
        Change.STILL_RIGHT: moved,
    }
    shown = [i for i in range(len(table)) if first[table.row(i)[0].tobytes()] == i]
    waiting = {
        change: sorted((i for i in shown if changes[i] is change), key=lambda i: -of[i])
        for change, of in merit.items()
    }
    taken = {change: min(share, len(waiting[change])) for change, share in _SHARES}
    for change, _ in _SHARES:
        taken[change] += min(EXAMPLES - sum(taken.values()), len(waiting[change]) - taken[change])
    return [(row, change) for change, _ in _SHARES for row in waiting[change][: taken[change]]]


def _example(
    row: int,
    change: Change,
    table: TokenTable,
    tokenizer: Decoder,
    labels: Sequence[str],
    answers: Sequence[_Answers],
    texts: tuple[str, str],
    kind: Classifier | None,
) -> ExampleRow:
    turn = last_turn(*table.row(row))
    prompt = turn.prompt if table.answers is None else table.row(row)[0]  # a head answers for the whole row
    label = None if answers[0].predicted is None or table.row_labels is None else table.row_labels[row]
    expected = _text(tokenizer, turn.answer) if label is None else labels[int(label)]
    if answers[0].texts and kind is not None and table.row_truth is not None:
        (expected,) = _as_texts(kind, table.row_truth[row : row + 1])
    ours, base = (each.reading(row, labels, text) for each, text in zip(answers, texts, strict=True))
    return ExampleRow(
        change=change,
        prompt=_text(tokenizer, prompt),
        expected=expected,
        recommended=ours,
        base=base,
    )


def _text(tokenizer: Decoder, tokens: npt.NDArray[np.int32]) -> str:
    """The text without special tokens; of a long one the beginning and the end."""
    return _cut(str(tokenizer.decode(tokens.tolist(), skip_special_tokens=True)).strip())


def _cut(text: str) -> str:
    half = _LETTERS // 2
    return text if len(text) <= _LETTERS else f"{text[:half].rstrip()} … {text[-half:].lstrip()}"


def _counts(changes: Sequence[Change]) -> tuple[tuple[Change, int], ...]:
    return tuple((change, changes.count(change)) for change in Change)


def _confusions(predicted: Ints | None, table: TokenTable) -> tuple[Confusion, ...]:
    if predicted is None or table.row_labels is None:
        return ()
    pairs, rows = np.unique(np.stack([table.row_labels, predicted]), axis=1, return_counts=True)
    return tuple(
        Confusion(true=int(true), predicted=int(taken), rows=int(count))
        for (true, taken), count in zip(pairs.T, rows, strict=True)
    )
