"""Tokenised rows as flat arrays, on disk where they are many. Knows numpy only: no torch, no datasets."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt

_BLOCK = 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenTable:
    """Rows of tokens; row i is tokens[offsets[i]:offsets[i + 1]]. The arrays may be memory-mapped."""

    tokens: npt.NDArray[np.int32]
    """[all tokens]"""
    supervised: npt.NDArray[np.bool_]
    """[all tokens] True where the token is to be predicted (never a row's first token)."""
    offsets: npt.NDArray[np.int64]
    """[stored rows + 1]"""
    labels: npt.NDArray[np.int32] | None = None
    """[stored rows] index of the row's class, for labelled data."""
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
    def row_labels(self) -> npt.NDArray[np.int32] | None:
        """[rows] class of each row, or None."""
        if self.labels is None or self.index is None:
            return self.labels
        return self.labels[self.index]

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
        """From (tokens, supervised) pairs in memory; for tests, benchmarks and small data."""
        offsets = np.cumsum([0, *(len(tokens) for tokens, _ in rows)], dtype=np.int64)
        return cls(
            tokens=np.concatenate([np.asarray(tokens, np.int32) for tokens, _ in rows]),
            supervised=np.concatenate([np.asarray(flags, np.bool_) for _, flags in rows]),
            offsets=offsets,
            labels=None if labels is None else np.asarray(labels, np.int32),
        )
