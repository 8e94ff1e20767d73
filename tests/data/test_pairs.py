"""Preference pairs: what becomes prompt, chosen and rejected, by known answers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loratune.data.pairs import Pairs
from loratune.data.prepare import PreparedData, prepare
from loratune.data.recognise import recognise
from loratune.data.row import Example, Row
from loratune.data.shapes import examples
from loratune.data.sources import DataOptions, Source
from loratune.errors import DataError
from loratune.values.tasks import PREFERENCE
from tiny import byte_tokenizer, write_jsonl

TOKENIZER = byte_tokenizer()
SKY = [{"role": "user", "content": "sky?"}]
BLUE, GREEN = ([{"role": "assistant", "content": colour}] for colour in ("blue", "green"))


def read(*rows: dict[str, Any], **options: str) -> list[Example]:
    source = Source(
        name="rows.jsonl",
        open=lambda: (Row(values, f"rows.jsonl:{line}") for line, values in enumerate(rows, start=1)),
    )
    shape = recognise(source, DataOptions(data="rows.jsonl", task=PREFERENCE.name, **options), TOKENIZER)
    assert isinstance(shape, Pairs)
    return list(examples(shape, source))


def words(example: Example) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(segment.text for segment in row) for row in example.rows)


@pytest.mark.parametrize(
    ("row", "options", "expected"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, {}, (("a", "b"), ("a", "c"))),
        ({"q": "a", "chosen": "b", "rejected": "c"}, {"prompt_column": "q"}, (("a", "b"), ("a", "c"))),
        (
            {"q": "a", "chosen": "b", "rejected": " c"},
            {"template": "Q: {q}\\nA:"},
            (("Q: a\nA:", " b"), ("Q: a\nA:", " c")),
        ),
        # as TRL's extract_prompt: what both begin with, a space before the answers is theirs
        ({"chosen": "The sky is blue.", "rejected": "The sky is green."}, {},
         (("The sky is", " blue."), ("The sky is", " green."))),
        ({"chosen": "ab", "rejected": "abc"}, {}, (("a", "b"), ("a", "bc"))),
        # an explicit conversation, an implicit one, and whole conversations beside a prompt as text
        *(
            (row, {}, (("User: sky?", "\nAssistant:", " blue"), ("User: sky?", "\nAssistant:", " green")))
            for row in (
                {"prompt": SKY, "chosen": BLUE, "rejected": GREEN},
                {"prompt": json.dumps(SKY), "chosen": json.dumps(BLUE), "rejected": json.dumps(GREEN)},
                {"chosen": SKY + BLUE, "rejected": SKY + GREEN},
                {"prompt": "sky?", "chosen": SKY + BLUE, "rejected": SKY + GREEN},
                {"prompt": "sky?", "chosen": BLUE, "rejected": GREEN},
            )
        ),
    ],
)  # fmt: skip
def test_known_pairs(row: dict[str, Any], options: dict[str, str], expected: Any) -> None:
    (example,) = read(row, **options)
    assert words(example) == expected
    assert [segment.learned for segment in example.segments][-1]
    assert not any(segment.learned for row in example.rows for segment in row[:-1])


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "rows.jsonl:2: 'chosen' and 'rejected' must differ"),
        ({"prompt": "a", "chosen": "b", "rejected": ""}, "rows.jsonl:2: 'rejected' must be text that is not empty"),
        ({"prompt": "a", "chosen": "b"}, "rows.jsonl:2 has no column 'rejected'"),
        ({"prompt": ["a"], "chosen": "b", "rejected": "c"}, "rows.jsonl:2: 'prompt' must be text"),
        ({"prompt": "a", "chosen": SKY, "rejected": SKY + BLUE}, "rows.jsonl:2: .* must be text as in the first row"),
    ],
)  # fmt: skip
def test_texts_that_are_no_pair(row: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        read({"prompt": "a", "chosen": "b", "rejected": "c"}, row)


def test_conversations_whose_prompts_differ_are_refused() -> None:
    sea = [{"role": "user", "content": "sea?"}]
    with pytest.raises(
        DataError, match=r"rows.jsonl:1: .* must begin with the same prompt .* 'sky\?' and 'sea\?'"
    ):
        read({"chosen": SKY + BLUE, "rejected": sea + GREEN})
    with pytest.raises(DataError, match=r"must begin with the same prompt .* 'Yes' and 'No'"):
        read({"chosen": "Yes", "rejected": "No"})
    with pytest.raises(DataError, match="1 equal messages; move them into the prompt"):
        read({"prompt": SKY, "chosen": SKY + BLUE, "rejected": SKY + GREEN})


def test_columns_that_are_missing_and_options_that_cannot_be() -> None:
    with pytest.raises(
        DataError, match=r"rows.jsonl:1 must have 'chosen' and 'rejected' .* got columns text"
    ):
        read({"text": "a"})
    with pytest.raises(DataError, match="--completion-column must be left out"):
        read({"prompt": "a", "chosen": "b", "rejected": "c"}, completion_column="chosen")
    with pytest.raises(DataError, match=r"--prompt-column must not show .* 'rejected'"):
        read({"prompt": "a", "chosen": "b", "rejected": "c"}, prompt_column="rejected")
    with pytest.raises(DataError, match="task must be one of causal, preference, classification, got 'dpo'"):
        DataOptions(data="rows.jsonl", task="dpo")
    source = Source(name="rows", open=lambda: iter([Row({"chosen": "b", "rejected": "c"}, "rows:1")]))
    with pytest.raises(DataError, match="learn from it with --task preference"):
        recognise(source, DataOptions(data="rows"), TOKENIZER)


def prepared(folder: Path, rows: list[dict[str, object]], **options: Any) -> PreparedData:
    data = str(write_jsonl(folder / "pairs.jsonl", rows))
    return prepare(DataOptions(data=data, task=PREFERENCE.name, **options), TOKENIZER, end_of_turn=0)


def test_pairs_stay_together_in_every_split(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"prompt": f"{i:02d}?", "chosen": f"good {i:02d}", "rejected": f"bad {i:02d}"} for i in range(40)
    ]
    data = prepared(tmp_path, rows, train_rows=20)
    assert data.profile.shape == "preference"
    assert not any("split into several rows" in note for note in data.notes)
    assert (data.profile.rows, data.profile.validation_rows) == (20, data.validation.examples)
    for table in (data.train, data.validation, data.test):
        assert table.group == 2
        assert len(table) == 2 * table.examples
        assert table.weights.tolist() == [1.0] * table.examples
        for pair in range(table.examples):
            chosen, rejected = (
                TOKENIZER.decode(table.row(2 * pair + i)[0].tolist(), skip_special_tokens=True)
                for i in (0, 1)
            )
            assert chosen[:3] == rejected[:3]
            assert (chosen[3:7], rejected[3:6]) == ("good", "bad")
        assert table.example_lengths.tolist() == (table.lengths[::2] + table.lengths[1::2]).tolist()


def test_a_pair_is_left_out_where_one_answer_is_too_long(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"prompt": f"{i:02d}?", "chosen": "good", "rejected": "bad" * (1 + 9 * (i == 3))} for i in range(20)
    ]
    data = prepared(tmp_path, rows, max_length=12)
    assert sum(table.examples for table in (data.train, data.validation, data.test)) == 19
    assert "1 of 20 rows are left out: they do not fit in 12 tokens (--max-length)." in data.notes


def test_references_are_of_the_rows_shown(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"prompt": f"{i}?", "chosen": "a", "rejected": "b"} for i in range(20)]
    table = prepared(tmp_path, rows).train
    known = table.referenced(-np.arange(len(table), dtype=np.float64))
    assert known.row_references is not None
    assert known.row_references.tolist() == [-float(i) for i in range(len(table))]
    part = known.take([2, 3])
    assert part.row_references is not None
    assert part.row_references.tolist() == [-2.0, -3.0]
