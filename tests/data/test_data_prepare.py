"""From files to three tables: splits, labels, duplicates, limits, refusals, and memory that does not grow."""

import csv
import json
import random
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loratune.data import table as store
from loratune.data.prepare import PreparedData, prepare
from loratune.data.sources import DataOptions
from loratune.data.table import TokenTable
from loratune.errors import DataError
from tiny import END, animal_rows, byte_tokenizer, write_jsonl

TOKENIZER = byte_tokenizer()


def ready(data: Path, model_limit: int | None = None, **options: Any) -> PreparedData:
    settings = DataOptions(
        data=str(data), **{k: str(v) if isinstance(v, Path) else v for k, v in options.items()}
    )
    return prepare(settings, TOKENIZER, end_of_turn=TOKENIZER.eos_token_id, model_limit=model_limit)


def texts(table: TokenTable) -> list[str]:
    return [TOKENIZER.decode(table.row(i)[0]) for i in range(len(table))]


def learnt(table: TokenTable) -> list[str]:
    return [TOKENIZER.decode(tokens[flags]) for tokens, flags in (table.row(i) for i in range(len(table)))]


def labelled(counts: dict[str, int]) -> list[dict[str, object]]:
    rows = [{"text": f"{label} number {i}", "label": label} for label, n in counts.items() for i in range(n)]
    random.Random(0).shuffle(rows)
    return rows


def completions(count: int, prefix: str = "") -> list[dict[str, object]]:
    return [{"prompt": f"{prefix}{i} + 1 = ", "completion": f"{i + 1}"} for i in range(count)]


def test_classification_end_to_end(tmp_path: Path) -> None:
    data = ready(write_jsonl(tmp_path / "train.jsonl", labelled({"dog_food": 200, "cat": 100, "rare": 7})))
    assert data.labels == ("cat", "dog food", "rare")
    assert [TOKENIZER.decode(ids) for ids in data.label_tokens] == [f" {label}{END}" for label in data.labels]
    profile = data.profile
    assert (profile.shape, profile.rows, profile.validation_rows, profile.test_rows) == (
        "classification", 215, 46, 46
    )  # fmt: skip
    assert profile.label_counts == (70, 140, 5)
    for table in (data.validation, data.test):
        assert table.row_labels is not None
        assert np.bincount(table.row_labels).tolist() == [15, 30, 1]
    for table in (data.train, data.validation, data.test):
        assert table.row_labels is not None
        for text, answer, label in zip(texts(table), learnt(table), table.row_labels, strict=True):
            words = data.labels[label]
            assert text.startswith(words.replace(" ", "_"))
            assert text.endswith(f"\nLabel: {words}{END}")
            assert answer == f" {words}{END}"
    everything = [*texts(data.train), *texts(data.validation), *texts(data.test)]
    assert len(set(everything)) == 307
    assert profile.tokens == sum(len(TOKENIZER(text).input_ids) for text in texts(data.train))
    assert profile.supervised_tokens == sum(len(f" {data.labels[k]}") + 1 for k in data.train.row_labels)
    assert profile.max_length == max(
        table.lengths.max() for table in (data.train, data.validation, data.test)
    )


def test_the_order_of_the_rows_does_not_matter(tmp_path: Path) -> None:
    rows = labelled({"a": 40, "b": 40})
    one = ready(write_jsonl(tmp_path / "one.jsonl", rows))
    two = ready(write_jsonl(tmp_path / "two.jsonl", rows[::-1]))
    other = ready(tmp_path / "one.jsonl", seed=1)
    assert set(texts(one.test)) == set(texts(two.test))
    assert set(texts(one.validation)) == set(texts(two.validation))
    assert set(texts(one.test)) != set(texts(other.test))


def test_fingerprint_follows_rows_seed_and_limit(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "train.jsonl", completions(50))
    again, seed, limit = ready(path), ready(path, seed=1), ready(path, max_length=40)
    changed = ready(write_jsonl(tmp_path / "other.jsonl", completions(51)))
    assert ready(path).fingerprint == again.fingerprint
    assert len({each.fingerprint for each in (again, seed, limit, changed)}) == 4


def test_given_splits_are_used_whole(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "a.jsonl", completions(20))
    validation = write_jsonl(tmp_path / "b.jsonl", completions(5, "v"))
    test = write_jsonl(tmp_path / "c.jsonl", completions(4, "t"))
    data = ready(train, validation=validation, test=test)
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 5, 4)
    assert all(text.startswith("v") for text in texts(data.validation))
    half = ready(train, test=test)
    assert (len(half.train), len(half.validation), len(half.test)) == (17, 3, 4)


def test_limits_choose_rows_by_seed_and_class(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "train.jsonl", labelled({"a": 600, "b": 300}))
    small = ready(path, train_rows=90, validation_rows=30, test_rows=60)
    larger = ready(path, train_rows=180, validation_rows=30, test_rows=60)
    assert small.profile.label_counts == (60, 30)
    assert (len(small.validation), len(small.test)) == (30, 60)
    assert set(texts(small.train)) < set(texts(larger.train))
    assert texts(small.test) == texts(larger.test)


def test_duplicates_leave_validation_and_test(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "a.jsonl", completions(20))
    validation = write_jsonl(tmp_path / "b.jsonl", completions(4, "v") + completions(3))
    test = write_jsonl(tmp_path / "c.jsonl", completions(5, "t") + completions(2, "v") + completions(1))
    data = ready(train, validation=validation, test=test)
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 4, 5)
    assert data.profile.duplicates_removed == 6
    assert any("3 validation rows that stand in another split too are removed" in note for note in data.notes)
    assert any("3 test rows" in note for note in data.notes)


def test_a_repeated_row_does_not_leak_between_own_splits(tmp_path: Path) -> None:
    data = ready(write_jsonl(tmp_path / "a.jsonl", completions(60) * 3))
    parts = [set(texts(table)) for table in (data.train, data.validation, data.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 60


def test_long_rows_are_cut_left_out_and_reported(tmp_path: Path) -> None:
    rows = completions(40)
    rows += [{"prompt": "long" * 20, "completion": f"fits {i}"} for i in range(4)]
    rows += [{"prompt": "p", "completion": "too long " * 9 + str(i)} for i in range(3)]
    data = ready(write_jsonl(tmp_path / "train.jsonl", rows), max_length=30)
    assert (data.profile.cut, data.profile.overlong, data.profile.max_length) == (4, 3, 30)
    assert len(data.train) + len(data.validation) + len(data.test) == 44
    assert sum(row.endswith(f"fits {i}{END}") for i in range(4) for row in texts(data.train)) == sum(
        "long" in row for row in texts(data.train)
    )
    assert "3 of 47 rows are left out: they do not fit in 30 tokens (--max-length)." in data.notes
    assert (
        "4 of 47 rows are used with the start of their prompt cut to fit in 30 tokens (--max-length)."
        in data.notes
    )


def test_texts_stay_whole_documents_across_splits(tmp_path: Path) -> None:
    rows = [{"text": letter * 48} for letter in "abcdefghijklmnopqrst"]
    data = ready(write_jsonl(tmp_path / "train.jsonl", rows), max_length=16)
    letters = [{text[0] for text in texts(table)} for table in (data.train, data.validation, data.test)]
    assert data.profile.shape == "text"
    assert (len(data.train), len(data.validation), len(data.test)) == (14 * 4, 3 * 4, 3 * 4)
    assert data.profile.supervised_tokens == 14 * 48  # 48 bytes and the end, less the first
    assert sum(map(len, letters)) == len(set.union(*letters)) == 20


def test_model_limit(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "train.jsonl", [*completions(40), {"prompt": "p" * 90, "completion": "c"}])
    assert ready(path).profile.max_length == 92
    assert ready(path, model_limit=50).profile.max_length <= 50
    assert ready(path, model_limit=50).profile.cut == 1
    with pytest.raises(DataError, match="max_length must be at most the model's 50 tokens, got 60"):
        ready(path, model_limit=50, max_length=60)


def test_classes_without_training_rows_are_noted(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "a.jsonl", labelled({"a": 20, "b": 20}))
    test = write_jsonl(tmp_path / "b.jsonl", [{"text": f"{i}", "label": "c"} for i in range(3)])
    data = ready(train, test=test)
    assert data.labels == ("a", "b", "c")
    assert "1 of 3 classes have no training row: c." in data.notes
    assert "2 of 3 classes have no test row: a, b." in data.notes
    assert "1 of 3 classes have no validation row: c." in data.notes


def test_thousands_of_classes(tmp_path: Path) -> None:
    """Also with a row for each, where validation and test can only have classes that training lacks."""
    data = ready(
        write_jsonl(tmp_path / "a.jsonl", [{"text": f"word{i}", "label": f"class{i}"} for i in range(3000)])
    )
    assert (len(data.labels), len(data.label_tokens)) == (3000, 3000)
    held = len(data.validation) + len(data.test)
    (note,) = [note for note in data.notes if "have no training row" in note]
    assert note.startswith(f"{held} of 3000 classes have no training row: class")


def test_completions_from_a_small_set_are_verbatim_classes(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i} is ", "completion": [" even", " odd_one"][i % 2]} for i in range(100)]
    data = ready(write_jsonl(tmp_path / "a.jsonl", rows))
    assert (data.profile.shape, data.labels) == ("prompt-completion", ("even", "odd_one"))
    assert [TOKENIZER.decode(ids) for ids in data.label_tokens] == [f" even{END}", f" odd_one{END}"]
    assert data.test.row_labels is not None
    assert [f" {data.labels[k]}{END}" for k in data.test.row_labels] == learnt(data.test)
    assert data.profile.label_counts == (35, 35)
    assert (
        "Completions are 2 different ones that repeat: accuracy and macro-F1 are measured too." in data.notes
    )


def test_completions_that_are_nearly_all_the_same_are_no_classes(tmp_path: Path) -> None:
    train = write_jsonl(
        tmp_path / "a.jsonl",
        [{"prompt": f"{i}", "completion": "a"} for i in range(40)]
        + [{"prompt": "p" * 90, "completion": "b" * 60}],
    )
    data = ready(train, max_length=60)  # the only other completion is too long
    assert data.profile.overlong == 1
    assert (data.labels, data.label_tokens, data.train.row_labels) == ((), (), None)


def write_csv(path: Path, rows: Iterable[dict[str, object]], delimiter: str) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_every_format_gives_the_same_tables(tmp_path: Path) -> None:
    from datasets import Dataset

    rows = animal_rows(60)
    dataset = Dataset.from_list(rows)
    dataset.save_to_disk(str(tmp_path / "saved"))
    dataset.to_parquet(str(tmp_path / "rows.parquet"))
    paths = [
        write_jsonl(tmp_path / "rows.jsonl", rows),
        write_csv(tmp_path / "rows.csv", rows, ","),
        write_csv(tmp_path / "rows.tsv", rows, "\t"),
        tmp_path / "rows.parquet",
        tmp_path / "saved",
    ]
    prepared = [ready(path) for path in paths]
    assert len({data.fingerprint for data in prepared}) == 1
    for data in prepared[1:]:
        assert texts(data.train) == texts(prepared[0].train)
        assert texts(data.test) == texts(prepared[0].test)


REFUSED: dict[str, tuple[list[dict[str, object]], dict[str, Any], str]] = {
    "one class": (labelled({"a": 40}), {}, "at least two classes, got only 'a' in column 'label'"),
    "one class used": (
        labelled({"a": 90, "b": 10}),
        {"train_rows": 2},
        "2 training rows used must have .* 'a'",
    ),
    "too few rows": (completions(9), {}, "at least 10 rows to split off test rows, got 9"),
    "all the same": (
        completions(1) * 40,
        {},
        "validation split must have at least 2 rows, got 0 after removing",
    ),
    "all too long": (
        completions(20),
        {"max_length": 2},
        r"train.jsonl must have rows of at most 2 tokens, but all 20 are longer \(the shortest has 10\)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_data(tmp_path: Path, case: str) -> None:
    rows, options, message = REFUSED[case]
    with pytest.raises(DataError, match=message) as caught:
        ready(write_jsonl(tmp_path / "train.jsonl", rows), **options)
    assert "\n" not in str(caught.value)


def test_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stays of a row in memory is bounded: far below its text and its tokens."""
    monkeypatch.setattr(store, "MEMORY_BYTES", 100_000)

    class Letters:
        chat_template = None

        def __call__(self, text: list[str], *, add_special_tokens: bool) -> dict[str, list[bytes]]:
            return {"input_ids": [each.encode() for each in text]}

    def peak(count: int) -> int:
        path = tmp_path / f"{count}.jsonl"
        with path.open("w") as file:
            for i in range(count):
                file.write(json.dumps({"prompt": f"{i} " + "x" * 400, "completion": "y"}) + "\n")
        tracemalloc.start()
        data = prepare(DataOptions(data=str(path)), Letters(), end_of_turn=10, cache=tmp_path)  # type: ignore[arg-type]
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(data.train) > 0.5 * count
        return most

    small, large = peak(2_000), peak(12_000)
    # A row's tokens and flags take 400 x (4 + 1) bytes; its digest, length, place and selection about 120.
    assert (large - small) / 10_000 < 200
