"""The closer look at rows: near-duplicates and leaks planted, kinds of task, likely mistakes, redundancy."""

import random
from collections.abc import Callable
from math import log2
from pathlib import Path

import numpy as np
import pytest

from loratune.data import duplicates
from loratune.data.duplicates import near_duplicates
from loratune.data.prepare import PreparedData, prepare
from loratune.data.profile import histogram
from loratune.data.sources import DataOptions
from loratune.data.survey import compression_ratio, guess_kind, survey
from loratune.data.table import TokenTable
from loratune.values import TaskKind
from tiny import END, byte_tokenizer, write_jsonl

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "bdgklmnprst"]


def sentence(rng: random.Random, words: int = 12) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


def table(rows: list[list[int]]) -> TokenTable:
    return TokenTable.from_rows([(row, [False] + [True] * (len(row) - 1)) for row in rows])


def tokens(count: int, length: int, seed: int) -> list[list[int]]:
    return np.random.default_rng(seed).integers(0, 30_000, (count, length)).tolist()


def altered(row: list[int], places: int) -> list[int]:
    """Some tokens at the end replaced: of n shingles about `places` change."""
    return [*row[:-places], *range(40_000, 40_000 + places)]


def test_planted_near_duplicates_are_found_and_strangers_are_not() -> None:
    base = tokens(300, 60, seed=0)
    train = [*base, *(altered(row, 3) for row in base[:40]), base[0]]
    test = [*tokens(100, 60, seed=1), *(altered(row, 4) for row in base[50:57])]
    found, pairs = near_duplicates(
        table(train), {"validation": table(tokens(50, 60, seed=2)), "test": table(test)}
    )
    assert (found.rows, found.training) == (341, 41)
    assert found.leaks == (("validation", 50, 0), ("test", 107, 7))
    assert pairs == (("test", 100, 50), ("test", 101, 51), ("test", 102, 52))


def test_rows_that_are_all_nearly_the_same_are_not_compared_each_with_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All but the first are found; what is proposed for comparison grows with the rows, not with their square."""
    base, count, proposed = tokens(1, 80, seed=0)[0], 120, list[int]()
    rows = [[*base, *own] for own in tokens(count, 5, seed=1)]
    strangers = tokens(10 * count, 40, seed=2)  # or what the rows share would be a template's
    query = duplicates.MinHashLSH.query

    def counted(self: duplicates.MinHashLSH, hashed: duplicates.MinHash) -> list[int]:
        found: list[int] = query(self, hashed)
        proposed.append(len(found))
        return found

    monkeypatch.setattr(duplicates.MinHashLSH, "query", counted)
    found, _ = near_duplicates(table([*strangers, *rows]), {"test": table(rows[:20])})
    assert found.training == count - 1
    assert found.leaks == (("test", 20, 20),)
    assert max(proposed) <= 60


def test_rows_below_the_threshold_are_not_duplicates() -> None:
    """Half of the shingles shared is a Jaccard similarity of a third."""
    base = tokens(60, 60, seed=0)
    found, _ = near_duplicates(table([*base, *(altered(row, 30) for row in base)]), {})
    assert found.training == 0


def test_a_shared_template_does_not_make_rows_alike() -> None:
    template = list(range(50_000, 50_080))
    rows = [template + row for row in tokens(200, 8, seed=3)]
    found, _ = near_duplicates(table(rows[:150]), {"test": table(rows[150:])})
    assert found.training == 0
    assert found.leaks == (("test", 50, 0),)


def test_equal_rows_of_nothing_but_template_are_duplicates() -> None:
    found, _ = near_duplicates(table([[1, 2, 3, 4]] * 30), {"test": table([[1, 2, 3, 4]])})
    assert found.training == 29
    assert found.leaks == (("test", 1, 1),)


CIPHER = str.maketrans("abcdefghijklmnopqrstuvwxyz", "xyzuvwrstopqlmnijkfghcdeab")
"""Another language: every word of it is foreign and as long."""


@pytest.mark.parametrize(
    ("kind", "shape", "labels"),
    [
        (TaskKind.CLASSIFICATION, "classification", 7),
        (TaskKind.DOMAIN_TEXT, "text", 0),
        (TaskKind.REASONING, "prompt-completion", 0),
        (TaskKind.EXTRACTION, "messages", 0),
        (TaskKind.TRANSLATION, "prompt-completion", 0),
        (TaskKind.INSTRUCTION, "messages", 0),
    ],
)
def test_kinds_of_task(kind: TaskKind, shape: str, labels: int) -> None:
    rng = random.Random(0)
    given = [sentence(rng, rng.randint(5, 50)) for _ in range(40)]
    learned = {
        TaskKind.REASONING: ["6 boxes of 4 make 6*4=24, so 24 in all."] * 40,
        TaskKind.EXTRACTION: [" ".join(text.split()[2:4]) for text in given],
        TaskKind.TRANSLATION: [text.translate(CIPHER) for text in given],
        TaskKind.INSTRUCTION: [sentence(rng, rng.randint(3, 60)) for _ in given],
    }.get(kind, given)
    found, reason = guess_kind(shape, labels, list(zip(given, learned, strict=True)))
    assert found is kind, reason
    assert len(reason) > 15


def prepared(tmp_path: Path, rows: list[dict[str, object]], **test: list[dict[str, object]]) -> PreparedData:
    options = {name: str(write_jsonl(tmp_path / f"{name}.jsonl", values)) for name, values in test.items()}
    return prepare(
        DataOptions(data=str(write_jsonl(tmp_path / "train.jsonl", rows)), **options),
        byte_tokenizer(),
        end_of_turn=0,
    )


def prompts(count: int, seed: int = 0) -> list[dict[str, object]]:
    rng = random.Random(seed)
    return [{"prompt": sentence(rng), "completion": " " + sentence(rng, 6)} for _ in range(count)]


def test_a_leak_is_told_with_its_rows_and_clean_data_without_a_warning(tmp_path: Path) -> None:
    rows, test = prompts(120), prompts(20, seed=1)
    clean = survey(prepared(tmp_path, rows, test=test), byte_tokenizer())
    assert clean.warnings == ()
    leaked = [{**row, "prompt": f"{row['prompt']}!"} for row in rows[:100]]
    found = survey(prepared(tmp_path, rows, test=[*test, *leaked]), byte_tokenizer())
    assert found.near_duplicates is not None
    assert {name: count for name, _, count in found.near_duplicates.leaks}["test"] > 60
    (warning,) = found.warnings
    assert "test rows are nearly in the training rows too" in warning
    for row, twin in found.near_duplicates.examples:
        assert row.replace("!", "") == twin


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda row: {**row, "prompt": f"<|im_start|>user {row['prompt']}"}, "chat format of another model"),
        (lambda row: {**row, "completion": row["completion"] + END * 12}, "as padding does"),
    ],
)
def test_a_wrong_template_and_learnt_padding_are_named_and_nothing_else(
    tmp_path: Path, change: Callable[[dict[str, object]], dict[str, object]], says: str
) -> None:
    (warning,) = survey(prepared(tmp_path, [change(row) for row in prompts(60)]), byte_tokenizer()).warnings
    assert says in warning


def test_two_beginnings_are_named(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = END
    data = prepared(tmp_path, [{**row, "prompt": END * 2 + str(row["prompt"])} for row in prompts(60)])
    (warning,) = survey(data, tokenizer).warnings
    assert "two beginning-of-text tokens" in warning


def test_compression_tells_repetition_from_noise() -> None:
    tokenizer = byte_tokenizer()
    noise = table(np.random.default_rng(0).integers(1, 95, (50, 200)).tolist())
    repeated = table([[40, 41, 42, 43] * 50] * 50)
    assert compression_ratio(noise, tokenizer) < 1.5
    assert compression_ratio(repeated, tokenizer) > 20


def test_counted_facts(tmp_path: Path) -> None:
    rows = [{"text": "ab" * (1 + i % 4), "label": "x" if i % 4 else "y"} for i in range(400)]
    rows = [{**row, "text": f"{row['text']} {i:04d}"} for i, row in enumerate(rows)]
    profile = prepared(tmp_path, rows).profile
    assert sum(rows for _, _, rows in profile.length_histogram) == profile.rows
    assert profile.length_quantiles[-1][1] <= profile.length_max
    quantiles = [length for _, length in profile.length_quantiles]
    assert quantiles == sorted(quantiles)
    assert dict(profile.length_quantiles)[0.5] == profile.length_p50
    assert profile.supervised_p50 == 3  # " x" or " y" and the end of turn
    assert profile.unique_tokens == len(set("ab 0123456789xyLabel:")) + 2  # and newline, end of turn
    share = profile.label_counts[0] / profile.rows
    entropy = -share * log2(share) - (1 - share) * log2(1 - share)
    assert profile.label_entropy == pytest.approx(entropy)
    assert profile.label_imbalance == pytest.approx(3, abs=0.1)


def test_histogram_bins_double() -> None:
    assert histogram(np.array([2, 3, 4, 7, 16])) == ((2, 3, 2), (4, 7, 2), (8, 15, 0), (16, 31, 1))
