"""Rows of a classifier from which nothing could be learnt, or that differ in kind, are refused before any training."""

from pathlib import Path
from typing import Any

import pytest

from loratune.data.prepare import prepare
from loratune.data.sources import DataOptions
from loratune.errors import DataError
from loratune.values import CLASSIFICATION
from tiny import byte_tokenizer, write_jsonl


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([[]] * 20, "at least two different ones, got an empty list in all 20 rows"),
        ([["cat"], []] * 10, "at least two different ones, got only 'cat'"),
        ([["cat", "dog"], ["dog", "cat"]] * 10, "must differ, got 'cat', 'dog' together in all 20 rows"),
        ([2.5] * 20, "the numbers in column 'label' must differ, got 2.5 in all 20 rows"),
        (["cat"] * 20, "at least two classes, got only 'cat'"),
        (["cat"] + [["dog"], ["cat", "dog"]] * 10, "rows.jsonl:1: 'label' must be a list of labels as in other rows"),
    ],
)  # fmt: skip
def test_answers_from_which_nothing_is_learnt(labels: list[Any], says: str, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)]
    options = DataOptions(data=str(write_jsonl(tmp_path / "rows.jsonl", rows)), task=CLASSIFICATION.name)
    with pytest.raises(DataError, match=says):
        prepare(options, byte_tokenizer(), end_of_turn=-1)


def test_a_text_that_is_the_answer(tmp_path: Path) -> None:
    data = str(write_jsonl(tmp_path / "rows.jsonl", [{"text": "a", "label": "b"}] * 20))
    options = DataOptions(data=data, task=CLASSIFICATION.name, prompt_column="label")
    with pytest.raises(DataError, match=r"--prompt-column must not show .* 'label'"):
        prepare(options, byte_tokenizer(), end_of_turn=-1)
