"""Who trains, validates and tests: proportions, determinism, duplicates; and the token table under it."""

from pathlib import Path

import numpy as np
import pytest

from loratune.data import table as store
from loratune.data.split import allocate, draw, split_off, without_duplicates
from loratune.data.table import DIGEST, StoreWriter, TokenTable, digest
from loratune.errors import DataError


def digests_of(texts: list[str], seed: int = 0) -> np.ndarray:
    return np.array([digest(text, str(seed).encode()) for text in texts], DIGEST)


def test_digest_is_the_same_everywhere() -> None:
    assert digest("ümlaut", b"0").hex() == "9c241d831c5feaffb686ba0f39681a28"


@pytest.mark.parametrize(
    ("counts", "total", "expected"),
    [
        ([50, 30, 20], 10, [5, 3, 2]),
        ([5, 3, 2], 5, [3, 1, 1]),  # 2.5, 1.5, 1.0: the first of equal remainders
        ([97, 1, 1, 1], 10, [10, 0, 0, 0]),  # .7 + .1 x 3: single rows are left
        ([2, 2], 4, [2, 2]),
        ([1, 1, 1], 2, [1, 1, 0]),  # nothing else is left
        ([0, 4], 2, [0, 2]),
    ],
)
def test_allocate_by_largest_remainders(counts: list[int], total: int, expected: list[int]) -> None:
    assert allocate(np.array(counts), total).tolist() == expected


def test_allocate_sums_up_and_never_takes_more_than_there_is() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        counts = rng.integers(0, 12, rng.integers(1, 9))
        for total in range(int(counts.sum()) + 1):
            for leave_one in (True, False):
                quotas = allocate(counts, total, leave_one)
                assert quotas.sum() == total
                assert np.all((quotas >= 0) & (quotas <= counts))


def test_draw_is_stratified_and_partitions_the_rows() -> None:
    labels = np.repeat(np.arange(4, dtype=np.int32), [400, 100, 40, 1])
    digests = digests_of([str(i) for i in range(len(labels))])
    chosen, rest = draw(digests, labels, np.arange(len(labels)), 81)
    assert sorted([*chosen, *rest]) == list(range(len(labels)))
    assert np.bincount(labels[chosen], minlength=4).tolist() == [60, 15, 6, 0]


def test_draw_depends_on_content_and_seed_alone() -> None:
    texts = [f"row {i}" for i in range(200)]
    rows = np.arange(200)
    chosen, _ = draw(digests_of(texts), None, rows, 40)
    backwards, _ = draw(digests_of(texts[::-1]), None, rows, 40)
    other_seed, _ = draw(digests_of(texts, seed=1), None, rows, 40)
    one_more, _ = draw(digests_of([*texts, "new"]), None, np.arange(201), 40)
    assert {texts[i] for i in chosen} == {texts[::-1][i] for i in backwards}
    assert len(set(chosen) & set(other_seed)) < 20
    assert len(set(chosen) & set(one_more)) >= 39


def test_split_off_is_15_percent_within_limits() -> None:
    digests = digests_of([str(i) for i in range(30_000)])

    def size(rows: int, limit: int | None = None) -> int:
        return len(split_off(digests, None, np.arange(rows), rows, limit, "test")[0])

    assert [size(rows) for rows in (10, 11, 13, 100, 1000, 16_000, 30_000)] == [2, 2, 2, 15, 150, 2000, 3000]
    assert size(1000, limit=30) == 30
    assert size(20_000, limit=2500) == 2500
    for rows in range(10, 300):
        assert 0.1 <= size(rows) / rows <= 0.2
    with pytest.raises(DataError, match=r"at least 10 rows to split off test rows, got 9; .*--test"):
        size(9)


def test_duplicates_are_found_by_digest() -> None:
    digests = digests_of(["a", "b", "a", "c"])
    rows, removed = without_duplicates(digests, np.array([0, 1, 2, 3]), digests_of(["a"]), digests_of(["x"]))
    assert (rows.tolist(), removed) == ([1, 3], 2)


def table() -> TokenTable:
    rows = [([1, 2, 3], [0, 1, 1]), ([4], [0]), ([5, 6], [0, 1])]
    return TokenTable.from_rows(
        [(tokens, [bool(f) for f in flags]) for tokens, flags in rows], labels=[7, 8, 9]
    )


def test_table_rows_lengths_and_counts() -> None:
    whole = table()
    assert len(whole) == 3
    assert [whole.row(i)[0].tolist() for i in range(3)] == [[1, 2, 3], [4], [5, 6]]
    assert whole.row(0)[1].tolist() == [False, True, True]
    assert whole.lengths.tolist() == [3, 1, 2]
    assert whole.supervised_counts.tolist() == [2, 0, 1]


def test_table_selection_of_a_selection() -> None:
    part = table().take([2, 0, 1]).take(np.array([1, 0]))
    assert [part.row(i)[0].tolist() for i in range(2)] == [[1, 2, 3], [5, 6]]
    assert part.lengths.tolist() == [3, 2]
    assert part.supervised_counts.tolist() == [2, 1]
    assert part.row_labels is not None
    assert part.row_labels.tolist() == [7, 9]


@pytest.mark.parametrize("memory_bytes", [0, 200, 10**6])
def test_store_gives_the_same_rows_from_memory_and_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory_bytes: int
) -> None:
    monkeypatch.setattr(store, "MEMORY_BYTES", memory_bytes)
    writer = StoreWriter(tmp_path / "cache", seed=0)
    for start in (0, 10, 20):
        pieces = [
            tuple(([d, k, 9], [False, True, True]) for k in range(1 + d % 3))
            for d in range(start, start + 10)
        ]
        writer.add([(piece, d % 2, str(d)) for d, piece in enumerate(pieces, start)])
    stored = writer.finish(labelled=True)
    assert isinstance(stored.table.tokens, np.memmap) == (memory_bytes < 10**6)
    assert list((tmp_path / "cache").glob("*")) == []  # the file has no name
    part = stored.take(np.array([5, 2]))
    assert [part.row(i)[0].tolist() for i in range(len(part))] == [
        [5, 0, 9], [5, 1, 9], [5, 2, 9], [2, 0, 9], [2, 1, 9], [2, 2, 9]
    ]  # fmt: skip
    assert part.row_labels is not None
    assert part.row_labels.tolist() == [1, 1, 1, 0, 0, 0]
    assert stored.digests.tolist() == digests_of([str(d) for d in range(30)]).tolist()
