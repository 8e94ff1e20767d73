"""Rows handed over in files: the same tables, mapped; damage is one sentence."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from loratune.data.prepare import PreparedData
from loratune.data.stored import read_rows, write_rows
from loratune.data.table import TokenTable
from loratune.errors import DataError
from loratune.values import DataProfile


def prepared() -> PreparedData:
    whole = TokenTable.from_rows(
        [
            ([1, 2, 3], [False, True, True]),
            ([4, 5], [False, True]),
            ([6, 7, 8, 9], [False, False, True, True]),
        ],
        labels=[0, 1, 0],
    )
    profile = DataProfile(
        shape="labels",
        rows=2,
        validation_rows=1,
        test_rows=1,
        tokens=5,
        supervised_tokens=3,
        length_mean=2.5,
        length_p50=2,
        length_p95=3,
        length_max=4,
        max_length=4,
    )
    return PreparedData(
        train=replace(whole.take([2, 0]), group=2, references=np.array([-1.0, -2.0, -3.0])),
        validation=whole.take([1]),
        test=TokenTable.from_rows([([1, 1], [False, True])]),
        profile=profile,
        labels=("no", "yes"),
        label_tokens=(np.array([5], np.int32), np.array([6, 7], np.int32)),
        notes=("Read as it is.",),
        fingerprint="0123456789abcdef",
    )


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    data = prepared()
    found = read_rows(write_rows(data, tmp_path / "rows"))
    for split in ("train", "validation", "test"):
        one, other = getattr(data, split), getattr(found, split)
        assert len(one) == len(other)
        for row in range(len(one)):
            for mine, theirs in zip(one.row(row), other.row(row), strict=True):
                assert np.array_equal(mine, theirs)
                assert mine.dtype == theirs.dtype
        assert np.array_equal(one.lengths, other.lengths)
        assert one.group == other.group
        assert (one.row_labels is None) == (other.row_labels is None)
    assert found.train.row_labels is not None
    assert found.train.row_labels.tolist() == [0, 0]
    assert found.train.references is not None
    assert found.train.references.tolist() == [-1.0, -2.0, -3.0]
    assert isinstance(found.train.tokens, np.memmap)
    assert all(map(np.array_equal, found.label_tokens, data.label_tokens))
    plain = [
        each.name for each in fields(data) if each.name not in ("train", "validation", "test", "label_tokens")
    ]
    for name in plain:
        assert getattr(found, name) == getattr(data, name), name


def test_splits_of_one_source_share_their_files(tmp_path: Path) -> None:
    write_rows(prepared(), tmp_path / "rows")
    arrays = sorted(tmp_path.glob("rows/*.npy"))
    assert len(arrays) == 4 + 1 + 2 + 3, (
        "one source's four, its references, two selections, the other source's three"
    )


@pytest.mark.parametrize("damage", ["rows.json", "0.npy"])
def test_damage_is_one_sentence(tmp_path: Path, damage: str) -> None:
    folder = write_rows(prepared(), tmp_path / "rows")
    whole = (folder / damage).read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"\x80" + whole[1:]):
        (folder / damage).write_bytes(content)
        with pytest.raises(DataError, match="must be as they were written, but"):
            read_rows(folder)


def test_a_file_elsewhere_is_not_opened(tmp_path: Path) -> None:
    folder = write_rows(prepared(), tmp_path / "rows")
    np.save(tmp_path / "other.npy", np.zeros(3, np.int32))
    text = (folder / "rows.json").read_text().replace('"0.npy"', '"../other.npy"')
    (folder / "rows.json").write_text(text)
    with pytest.raises(DataError, match="must be as they were written"):
        read_rows(folder)
