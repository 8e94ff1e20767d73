"""Tokenised rows as flat arrays, and how they are collected: in memory while they are few, on disk when many.

Knows arrays and one folder; does not know what rows mean.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt

from loratune.data.encode import Piece

_BLOCK = 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenTable:
    """Rows of tokens; row i is tokens[offsets[i]:offsets[i + 1]]. The arrays may be memory-mapped."""

    tokens: npt.NDArray[np.int32]
    """[all tokens]"""
    supervised: npt.NDArray[np.bool_]
    """[all tokens] True where something is asked: the token itself (never a row's first), or the row's answer."""
    offsets: npt.NDArray[np.int64]
    """[stored rows + 1]"""
    labels: npt.NDArray[np.int32] | None = None
    """[stored rows] index of the row's class, for labelled data."""
    answers: npt.NDArray[Any] | None = None
    """[stored rows, …] what is asked of each row at its supervised tokens, of their own states; None: these tokens
    themselves, of the states before them."""
    group: int = 1
    """Rows that belong together, one after another: 2 where they are pairs, the preferred one first."""
    references: npt.NDArray[np.float64] | None = None
    """[stored rows] log-likelihood of the supervised tokens under the base model, in nats; None: not known."""
    index: npt.NDArray[np.int64] | None = None
    """[rows] stored rows that this table shows, in this order; None shows all."""

    def __len__(self) -> int:
        return len(self.offsets) - 1 if self.index is None else len(self.index)

    def row(self, i: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """Tokens and supervision of row i: two arrays [length]."""
        stored = i if self.index is None else int(self.index[i])
        span = slice(int(self.offsets[stored]), int(self.offsets[stored + 1]))
        return self.tokens[span], self.supervised[span]

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """[rows] tokens of each row."""
        lengths = np.diff(self.offsets)
        return lengths if self.index is None else lengths[self.index]

    @cached_property
    def supervised_counts(self) -> npt.NDArray[np.int64]:
        """[rows] supervised tokens of each row."""
        starts = self.offsets[:-1]
        counts = np.empty(len(starts), np.int64)
        for first in range(0, len(starts), _BLOCK):  # in one go numpy would widen all flags to eight bytes
            block = starts[first : first + _BLOCK]
            end = self.offsets[min(first + _BLOCK, len(starts))]
            flags = self.supervised[block[0] : end]
            counts[first : first + _BLOCK] = np.add.reduceat(flags, block - block[0], dtype=np.int64)
        return counts if self.index is None else counts[self.index]

    @property
    def examples(self) -> int:
        """What a user calls rows: rows, or groups of them that belong together."""
        return len(self) // self.group

    @cached_property
    def example_lengths(self) -> npt.NDArray[np.int64]:
        """[examples] tokens of each."""
        return np.asarray(self.lengths.reshape(-1, self.group).sum(1), np.int64)

    @cached_property
    def weights(self) -> npt.NDArray[np.float64]:
        """[examples] what each counts in a mean over all: its supervised tokens, a group once."""
        if self.group > 1:
            return np.ones(self.examples)
        return self.supervised_counts.astype(np.float64)

    @property
    def row_references(self) -> npt.NDArray[np.float64] | None:
        """[rows] of `references`, or None."""
        if self.references is None or self.index is None:
            return self.references
        return self.references[self.index]

    def referenced(self, values: npt.NDArray[np.float64]) -> Self:
        """The same rows with the `references` [rows] of those that it shows."""
        stored = np.full(len(self.offsets) - 1, np.nan)
        stored[slice(None) if self.index is None else self.index] = values
        return replace(self, references=stored)

    @property
    def firsts(self) -> Self:
        """The first row of each group."""
        return self if self.group == 1 else replace(self.take(np.arange(0, len(self), self.group)), group=1)

    @property
    def row_labels(self) -> npt.NDArray[np.int32] | None:
        """[rows] class of each row, or None."""
        if self.labels is None or self.index is None:
            return self.labels
        return self.labels[self.index]

    @property
    def row_answers(self) -> npt.NDArray[Any] | None:
        """[rows, …] what each row is to be answered with, or None."""
        if self.answers is None or self.index is None:
            return self.answers
        return self.answers[self.index]

    @property
    def row_truth(self) -> npt.NDArray[Any] | None:
        """What is true of each row: its class [rows], the labels that hold [rows, labels], its number [rows], which is
        floating; None where only its text is."""
        labels, answers = self.row_labels, self.row_answers
        if answers is None or labels is not None:
            return None if labels is None else labels.astype(np.int64)
        return answers.astype(np.int64) if answers.ndim > 1 else answers

    def take(self, rows: npt.NDArray[np.int64] | Sequence[int]) -> Self:
        """The same arrays seen through a selection of rows; copies no tokens."""
        chosen = np.asarray(rows, dtype=np.int64)
        return replace(self, index=chosen if self.index is None else self.index[chosen])

    @classmethod
    def from_rows(
        cls,
        rows: Sequence[tuple[Sequence[int], Sequence[bool]]],
        labels: Sequence[int] | None = None,
    ) -> Self:
        """A table of (tokens, supervised) pairs in memory; for tests, benchmarks and small data."""
        offsets = np.cumsum([0, *(len(tokens) for tokens, _ in rows)], dtype=np.int64)
        return cls(
            tokens=np.concatenate([np.asarray(tokens, np.int32) for tokens, _ in rows]),
            supervised=np.concatenate([np.asarray(flags, np.bool_) for _, flags in rows]),
            offsets=offsets,
            labels=None if labels is None else np.asarray(labels, np.int32),
        )


MEMORY_BYTES = 64 * 2**20
DIGEST = np.dtype("S16")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StoredRows:
    """All rows of one source."""

    table: TokenTable
    digests: npt.NDArray[np.bytes_]
    """[documents] 16 bytes, equal for exact duplicates; sorting them is a seeded shuffle."""
    first_piece: npt.NDArray[np.int64]
    """[documents + 1] document d is the table's rows first_piece[d] to first_piece[d + 1]."""

    def __len__(self) -> int:
        return len(self.digests)

    def take(self, documents: npt.NDArray[np.int64]) -> TokenTable:
        """The table of some documents' pieces."""
        counts = np.diff(self.first_piece)[documents]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return self.table.take(np.repeat(self.first_piece[:-1][documents], counts) + within)


class StoreWriter:
    """Appends documents; `finish` gives them back as arrays."""

    def __init__(self, folder: Path | None, seed: int) -> None:
        """`folder` is where many rows go (None: the system's temporary folder)."""
        self._key = str(seed).encode()
        self._tokens = _Column(np.dtype(np.int32), folder)
        self._learned = _Column(np.dtype(np.bool_), folder)
        self._lengths = _Column(np.dtype(np.int32), folder)
        self._labels = _Column(np.dtype(np.int32), folder)
        self._digests = _Column(DIGEST, folder)
        self._pieces = _Column(np.dtype(np.int32), folder)

    def add(self, documents: Iterable[tuple[tuple[Piece, ...], int, str]]) -> None:
        """(pieces, label or -1, identity) of each document; call it with hundreds of them at a time."""
        batch = list(documents)
        rows = [piece for pieces, _, _ in batch for piece in pieces]
        self._tokens.append(list(chain.from_iterable(tokens for tokens, _ in rows)))
        self._learned.append(list(chain.from_iterable(flags for _, flags in rows)))
        self._lengths.append([len(tokens) for tokens, _ in rows])
        self._labels.append([label for pieces, label, _ in batch for _ in pieces])
        self._digests.append([digest(identity, self._key) for _, _, identity in batch])
        self._pieces.append([len(pieces) for pieces, _, _ in batch])

    def finish(self, labelled: bool, group: int = 1) -> StoredRows:
        """Everything that was added; each document is `group` rows that belong together (1: any number of them)."""
        return StoredRows(
            table=TokenTable(
                tokens=self._tokens.array(),
                supervised=self._learned.array(),
                offsets=_offsets(self._lengths.array()),
                labels=self._labels.array() if labelled else None,
                group=group,
            ),
            digests=self._digests.array(),
            first_piece=_offsets(self._pieces.array()),
        )


def digest(identity: str, key: bytes) -> bytes:
    """16 bytes of a keyed hash."""
    return blake2b(identity.encode(), digest_size=DIGEST.itemsize, key=key).digest()


def _offsets(lengths: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


class _Column:
    """A flat array that grows by batches."""

    def __init__(self, dtype: np.dtype[Any], folder: Path | None) -> None:
        self._dtype = dtype
        self._folder = folder
        self._batches: list[npt.NDArray[Any]] = []
        self._bytes = 0
        self._file: IO[bytes] | None = None

    def append(self, values: list[Any]) -> None:
        batch = np.array(values, self._dtype)
        self._bytes += batch.nbytes
        self._batches.append(batch)
        if self._bytes > MEMORY_BYTES:
            self._spill()

    def _spill(self) -> None:
        if self._file is None:
            if self._folder is not None:
                self._folder.mkdir(parents=True, exist_ok=True)
            self._file = TemporaryFile(dir=self._folder, prefix="loratune-")  # noqa: SIM115 (lives as the array)
        for batch in self._batches:
            self._file.write(batch.data)
        self._batches.clear()

    def array(self) -> npt.NDArray[Any]:
        """All values: in memory, or memory-mapped from a file that goes when the array goes."""
        if self._file is None:
            return np.concatenate(self._batches) if self._batches else np.zeros(0, self._dtype)
        self._spill()
        with self._file as file:  # the map outlives the file object
            file.flush()
            return np.memmap(file, dtype=self._dtype, mode="r")
