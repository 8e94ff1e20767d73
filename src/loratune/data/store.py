"""Encoded rows, appended as they come: in memory while they are few, in an unnamed file when they are many.

Knows arrays and one folder; does not know what rows mean.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from loratune.data.encode import Piece
from loratune.data.table import TokenTable

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

    def finish(self, labelled: bool) -> StoredRows:
        """Everything that was added."""
        return StoredRows(
            table=TokenTable(
                tokens=self._tokens.array(),
                supervised=self._learned.array(),
                offsets=_offsets(self._lengths.array()),
                labels=self._labels.array() if labelled else None,
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
