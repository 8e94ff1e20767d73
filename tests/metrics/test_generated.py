"""Metrics of generated text: known answers, and what each refuses."""

import json

import numpy as np
import pytest

import own_metrics
from loratune.errors import InputError
from loratune.metrics import (
    BUILT_IN,
    Metric,
    Needs,
    Outputs,
    Rows,
    UnscorableRow,
    find,
    is_address,
    measure,
    metric,
    named,
    searched_by,
)
from loratune.testing.metrics import MetricContract

GSM8K = r"regex:#### (\S+)"


def outputs(texts: list[str], references: list[str]) -> Outputs:
    rows = len(texts)
    return Outputs(
        nll=np.ones(rows),
        exact_match=np.zeros(rows, np.bool_),
        rows=Rows(weights=np.ones(rows)),
        generated=texts,
        references=references,
    )


def scored(name: str, *pairs: tuple[str, str]) -> list[float]:
    found = find(name).scores(outputs([text for text, _ in pairs], [true for _, true in pairs]))
    assert found is not None
    return [round(each, 4) for each in found.tolist()]


def test_generated_text_is_matched_as_a_whole() -> None:
    assert scored("generated_match", ("a cat", "a cat"), ("A cat", "a cat"), ("a cat.", "a cat")) == [1, 0, 0]


def test_json_is_compared_by_value() -> None:
    true = '{"a": [1, 2.0], "b": null}'
    same = ['{"b":null,"a":[1.0,2]}', true]
    other = [
        '{"a": [2, 1], "b": null}',
        '{"a": [1, 2]}',
        "",
        "{'a': 1}",
        "[" * 10_000,
        '{"a": [1, 2], "b": NaN}',
    ]
    assert scored("json_match", *((text, true) for text in same)) == [1, 1]
    assert scored("json_match", *((text, true) for text in other)) == [0] * len(other)
    assert scored("json_match", ("true", "1"), ('"1"', "1"), ("1", "1")) == [0, 0, 1]


def test_json_references_must_be_json() -> None:
    with pytest.raises(UnscorableRow, match="Expecting") as caught:
        find("json_match").check(['{"a": 1}', '{"a": 1'])
    assert caught.value.row == 1
    with pytest.raises(UnscorableRow):
        find("json_match").check(["[" * 100_000])
    assert find("json_match").check([json.dumps({"a": 1})]) == ()


def test_a_group_of_the_last_match_is_compared() -> None:
    true = "6 times 12 is 72\n#### 72"
    pairs = [
        ("so\n#### 72", true),
        ("#### 71 no\n#### 72", true),
        ("#### 72 no\n#### 71", true),
        ("72", true),
        ("#### 72.00", true),
        ("#### 1000", "#### 1,000"),
        ("#### x", "#### x"),
        ("#### 72", "no match"),
    ]
    assert scored(GSM8K, *pairs) == [1, 1, 0, 0, 1, 1, 1, 0]
    assert find(GSM8K).info.text(0.25) == "25.0 %"


@pytest.mark.parametrize(
    ("name", "words"),
    [("regex:#### .*", "a group in parentheses"), ("regex:(", "a regular expression"), ("regex:", "a group")],
)
def test_expressions_that_cannot_be_used(name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        named(name)


def test_an_expression_must_match_a_completion() -> None:
    with pytest.raises(InputError, match=r"none of 2 has a match, the first is 'The answer is 3'"):
        find(GSM8K).check(["The answer is 3", "4"])
    (note,) = find(GSM8K).check(["#### 3", "4"])
    assert "1 of 2" in note
    assert find(GSM8K).check(["#### 3"]) == ()


def test_rouge_by_hand() -> None:
    """Two of three words each way; of two bigrams one; the longest common subsequence has two words."""
    pair = ("the cat sat", "the cat ran")
    assert scored("rouge1", pair) == [round(2 / 3, 4)]
    assert scored("rouge2", pair) == [0.5]
    assert scored("rougeL", pair, ("sat the", "the sat"), ("", "x")) == [round(2 / 3, 4), 0.5, 0]


def test_bleu_and_chrf_by_hand() -> None:
    """BLEU of 'the cat sat' against 'the cat ran': (2/3 · 1/2 · 1/2)^(1/3), the last of them smoothed."""
    pair = ("the cat sat", "the cat ran")
    assert scored("bleu", pair, ("a b c d e", "a b c d e")) == [
        round((2 / 3 * 1 / 2 * 1 / 2) ** (1 / 3), 4),
        1,
    ]
    same, none = scored("chrf", ("a cat", "a cat"), ("xyz", "a cat"))
    assert (same, none) == (1, 0)
    (found,) = scored("chrf", ("ab", "ac"))
    # of single characters one in two, of pairs none; six orders are wished, two are there
    assert found == pytest.approx((0.5 + 0) / 2, abs=1e-3)


@pytest.mark.parametrize("name", ["bleu", "rougeL"])
def test_a_library_that_is_missing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from loratune.metrics import generated

    for package in ("sacrebleu.metrics", "rouge_score.rouge_scorer"):
        monkeypatch.setitem(sys.modules, package, None)
    fresh = generated.bleu() if name == "bleu" else generated.rouge(name)
    with pytest.raises(InputError, match=r"not installed; pip install 'loratune\[generation\]'"):
        fresh.check(["x"])


def test_a_function_may_ask_for_generated_text() -> None:
    given = outputs(["abcd"], ["abcx"])
    assert named("own_metrics:overlap").scores(given) is None
    asked = named("generated:own_metrics:overlap")
    assert asked.needs is Needs.GENERATION
    assert asked.scores(given) == np.array([0.75])
    assert metric(own_metrics.overlap, generated=True).needs is Needs.GENERATION
    assert is_address("generated:own_metrics:overlap")
    assert not is_address("regex:own")
    with pytest.raises(InputError, match="must be a function"):
        named("generated:own_metrics:number")


def test_the_search_goes_by_the_likelihood() -> None:
    assert {searched_by(each).name for each in BUILT_IN.values() if each.needs is Needs.GENERATION} == {"nll"}
    assert searched_by(find("accuracy")).name == "accuracy"


def test_what_is_measured_of_generated_text() -> None:
    values, columns = measure(outputs(["a", "b"], ["a", "c"]), find("chrf"))
    assert values["generated_match"] == 0.5
    assert set(columns) == {"exact_match", "generated_match", "chrf"}


class _OfText(MetricContract):
    references = ("a red cat sat", "two blue dogs ran", "one mouse", "green birds sing at dawn")


class TestGenerated(_OfText):
    metric: Metric = find("generated_match")


class TestRouge1(_OfText):
    metric: Metric = find("rouge1")


class TestRouge2(_OfText):
    metric: Metric = find("rouge2")
    references = ("a red cat sat", "two blue dogs ran", "one grey mouse", "green birds sing at dawn")


class TestRougeL(_OfText):
    metric: Metric = find("rougeL")


class TestBleu(_OfText):
    metric: Metric = find("bleu")


class TestChrf(_OfText):
    metric: Metric = find("chrf")


class TestJson(_OfText):
    metric: Metric = find("json_match")
    references = ("1", '{"a": 2}', "[3]")


class TestRegex(_OfText):
    metric: Metric = find(GSM8K)
    references = ("so #### 1", "#### 2", "#### -3.5")
