"""Which test rows are shown and what is said of them, from scores that are known."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from loratune.analysis.final import EXAMPLES, Final, FinalModel, SplitScores, held_out
from loratune.analysis.written import written_tokens
from loratune.data.table import TokenTable
from loratune.values import Classifier, Problem
from loratune.values.analysis import Change, Confusion


class Letters:
    """Token i is the letter i; 0 is special."""

    def decode(self, tokens: list[int], *, skip_special_tokens: bool) -> str:
        return "".join(chr(token) for token in tokens if token or not skip_special_tokens)


def row(prompt: str, completion: str) -> tuple[list[int], list[bool]]:
    tokens = [ord(letter) for letter in prompt + completion] + [0]
    return tokens, [False] * len(prompt) + [True] * (len(completion) + 1)


def final(ours: SplitScores, base: SplitScores) -> Final:
    return Final(
        recommended=FinalModel(validation=None, test=ours),
        default_recipe=None,
        base_model=FinalModel(validation=None, test=base),
        before=1.0,
    )


def scored(nll: list[float], **scores: list[float]) -> SplitScores:
    return SplitScores(
        metrics={}, example_nll=np.array(nll), example_scores={k: np.array(v) for k, v in scores.items()}
    )


def test_labelled_rows_are_told_by_their_labels() -> None:
    table = TokenTable.from_rows([row(f"row {i}:", "xy"[i % 2]) for i in range(4)], labels=[0, 1, 0, 1])
    ours = scored([0.2, 4.0, 6.0, 0.2], prediction=[0, 0, 1, 1])  # right, wrong, wrong, right
    base = scored([2.2, 2.0, 8.0, 0.4], prediction=[1, 1, 1, 1])  # wrong, right, wrong, right
    found = held_out(final(ours, base), table, Letters(), ("ex", "why"))
    assert [each.change for each in found.examples] == [
        Change.BETTER,
        Change.WORSE,
        Change.STILL_WRONG,
        Change.STILL_RIGHT,
    ]
    better = found.examples[0]
    assert (better.prompt, better.expected) == ("row 0:", "ex")
    assert (better.recommended.answer, better.recommended.right, better.recommended.nll) == ("ex", True, 0.1)
    assert (better.base.answer, better.base.right, better.base.nll) == ("why", False, 1.1)
    assert dict(found.counts) == dict.fromkeys(Change, 1)
    assert found.recommended == (
        Confusion(true=0, predicted=0, rows=1),
        Confusion(true=0, predicted=1, rows=1),
        Confusion(true=1, predicted=0, rows=1),
        Confusion(true=1, predicted=1, rows=1),
    )
    assert found.base == (Confusion(true=0, predicted=1, rows=2), Confusion(true=1, predicted=1, rows=2))


def test_ten_rows_those_first_that_changed_most() -> None:
    rows = 30
    table = TokenTable.from_rows([row(f"{i}:", "a") for i in range(rows)], labels=[0, 1] * 15)
    labels = [i % 2 for i in range(rows)]
    wrong = [1 - each for each in labels]
    ours = scored([float(i) for i in range(rows)], prediction=[*labels[:29], wrong[29]])
    base = scored([40.0] * rows, prediction=wrong)
    found = held_out(final(ours, base), table, Letters(), ("a", "b"))
    assert len(found.examples) == EXAMPLES
    assert [each.change for each in found.examples] == [Change.BETTER] * 9 + [Change.STILL_WRONG]
    assert [each.prompt for each in found.examples[:9]] == [f"{i}:" for i in range(9)]
    assert found.examples[9].prompt == "29:"


def test_rows_without_labels_are_told_by_their_likelihood() -> None:
    table = TokenTable.from_rows([row("a", "b" * 1000), row("c", "d"), row("e", "f")])
    ours = scored([100.1, 3.0, 0.2], exact_match=[0, 0, 1])
    base = scored([2002.0, 2.0, 9.0], exact_match=[0, 0, 0])
    found = held_out(final(ours, base), table, Letters(), ())
    assert [(each.prompt, each.change) for each in found.examples] == [
        ("e", Change.BETTER),
        ("a", Change.BETTER),
        ("c", Change.WORSE),
    ]
    assert found.recommended == found.base == ()
    long = found.examples[1]
    assert long.recommended.nll == 100.1 / 1001
    assert long.recommended.answer == ""
    assert len(long.expected) < 400
    assert " … " in long.expected


def test_what_models_write_stands_beside_its_row() -> None:
    table = TokenTable.from_rows([row("q", "a"), row("say", "yes"), row("e", "f")])
    ours, base = scored([0.1, 0.2, 0.3]), scored([9.0, 8.0, 7.0])
    found = held_out(
        final(ours, base), table, Letters(), (), lambda rows: [(f"mine {i}", f"base {i}") for i in rows]
    )
    texts = {each.prompt: (each.recommended.text, each.base.text) for each in found.examples}
    assert texts == {"q": ("mine 0", "base 0"), "say": ("mine 1", "base 1"), "e": ("mine 2", "base 2")}


def test_of_several_turns_the_last_is_shown() -> None:
    turns = [([*map(ord, "HihoHmha"), 0], [False, False, True, True, False, False, True, True, True])]
    found = held_out(final(scored([1.0]), scored([2.0])), TokenTable.from_rows(turns), Letters(), ())
    assert [(each.prompt, each.expected) for each in found.examples] == [("HihoHm", "ha")]


def asked(answers: list[Any], text: str = "word") -> TokenTable:
    """Rows whose last token is answered by a head."""
    tokens = [ord(letter) for letter in text]
    rows = [(tokens, [False] * (len(text) - 1) + [True]) for _ in answers]
    return replace(TokenTable.from_rows(rows), answers=np.array(answers))


def test_numbers_are_told_in_their_own_unit_and_the_whole_row_is_shown() -> None:
    kind = Classifier(problem=Problem.NUMBER, labels=(), centre=10.0, scale=4.0)
    ours, base = scored([0.1], correlation=[0.5]), scored([9.0], correlation=[-2.0])
    (shown,) = held_out(final(ours, base), asked([12.25]), Letters(), (), kind=kind).examples
    assert (shown.prompt, shown.expected) == ("word", "12.25")
    assert (shown.recommended.text, shown.base.text) == ("12", "2")


def test_of_several_labels_those_that_hold_are_told() -> None:
    kind = Classifier(problem=Problem.SEVERAL, labels=("red", "round", "new"))
    ours = scored([0.1], prediction=[[1, 1, 0]])
    base = scored([9.0], prediction=[[0, 0, 0]])
    (shown,) = held_out(final(ours, base), asked([[1, 0, 1]]), Letters(), (), kind=kind).examples
    assert shown.expected == "red, new"
    assert (shown.recommended.text, shown.base.text) == ("red, round", "no label")


@pytest.mark.parametrize(
    ("answers", "given", "tokens"), [([3], None, 16), ([40, 20], None, 40), ([500], None, 96), ([500], 8, 8)]
)
def test_how_much_is_written(answers: list[int], given: int | None, tokens: int) -> None:
    assert written_tokens([np.zeros(each, np.int32) for each in answers], given) == tokens


def test_a_row_that_stands_there_twice_is_shown_once() -> None:
    table = TokenTable.from_rows([row("same", "a"), row("same", "a"), row("other", "a")], labels=[0, 0, 0])
    ours, base = scored([1.0, 1.0, 1.0], prediction=[0, 0, 0]), scored([3.0, 3.0, 2.0], prediction=[1, 1, 1])
    found = held_out(final(ours, base), table, Letters(), ("a", "b"))
    assert [each.prompt for each in found.examples] == ["same", "other"]
    assert dict(found.counts)[Change.BETTER] == 3


def test_without_test_rows_there_is_nothing_to_show() -> None:
    table = TokenTable.from_rows([row("a", "b")]).take([])
    nothing = held_out(final(scored([]), scored([])), table, Letters(), ())
    assert nothing.examples == ()
    assert nothing.counts == ()
