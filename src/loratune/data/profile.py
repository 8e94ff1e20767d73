"""Facts about prepared data, counted, and those that betray a mistake. Knows tables; neither files nor tokenizers."""

from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from loratune.data.table import TokenTable
from loratune.values import DataProfile

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


@dataclass(kw_only=True, slots=True)
class Counts:
    """What is counted while rows are read and split, over all sources."""

    read: int = 0
    overlong: int = 0
    cut: int = 0
    split: int = 0
    """Texts that became several rows."""
    duplicates: int = 0


def profile_of(
    *,
    train: TokenTable,
    validation: TokenTable,
    test: TokenTable,
    shape: str,
    max_length: int,
    labels: tuple[str, ...],
    counts: Counts,
) -> DataProfile:
    """The profile; token figures and label counts are of the training split."""
    lengths = train.lengths
    classes = train.row_labels
    return DataProfile(
        shape=shape,
        rows=train.examples,
        validation_rows=validation.examples,
        test_rows=test.examples,
        tokens=int(lengths.sum()),
        supervised_tokens=int(train.supervised_counts.sum()),
        length_mean=float(lengths.mean()),
        length_p50=int(np.percentile(lengths, 50, method="higher")),
        length_p95=int(np.percentile(lengths, 95, method="higher")),
        length_max=int(lengths.max()),
        max_length=max_length,
        labels=labels,
        label_counts=() if classes is None else tuple(np.bincount(classes, minlength=len(labels)).tolist()),
        duplicates_removed=counts.duplicates,
        overlong=counts.overlong,
        cut=counts.cut,
        unique_tokens=_unique_tokens(train),
        length_quantiles=tuple(
            (share, int(np.quantile(lengths, share, method="higher"))) for share in _QUANTILES
        ),
        length_histogram=histogram(lengths),
        supervised_p50=int(np.percentile(train.supervised_counts, 50, method="higher")),
    )


def histogram(lengths: npt.NDArray[np.int64]) -> tuple[tuple[int, int, int], ...]:
    """(first length, last length, rows) of bins that double: 1, 2–3, 4–7, …; empty ones at either end left out."""
    powers = np.floor(np.log2(np.maximum(lengths, 1))).astype(np.int64)
    counts = np.bincount(powers)
    return tuple(
        (2**power, 2 ** (power + 1) - 1, int(counts[power]))
        for power in range(int(powers.min()), len(counts))
    )


def _unique_tokens(table: TokenTable) -> int:
    """Different ids, by marking them row by row: the tokens themselves may lie on disk."""
    seen = np.zeros(0, np.bool_)
    for i in range(len(table)):
        tokens, _ = table.row(i)
        largest = int(tokens.max(initial=-1))
        if largest >= len(seen):
            seen = np.concatenate([seen, np.zeros(largest + 1024 - len(seen), np.bool_)])
        seen[tokens] = True
    return int(seen.sum())


_MOST_ROWS = 2048
"""Rows looked at for padding: its share is the same everywhere."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Repeats:
    """Supervised tokens that repeat the token at an end of their row; of the one token with most of them."""

    repeated: int
    supervised: int
    """All supervised tokens of the rows looked at."""
    rows: int
    """Rows with repeated ones."""
    of_rows: int


def repeats_at_the_ends(table: TokenTable) -> Repeats:
    """Counts runs of one supervised token at the start or the end of rows, each run's first token left out."""
    counts: Counter[int] = Counter()
    rows: Counter[int] = Counter()
    of_rows = min(len(table), _MOST_ROWS)
    supervised = 0
    for i in np.linspace(0, len(table) - 1, of_rows).astype(np.int64).tolist():
        tokens, flags = table.row(i)
        supervised += int(flags.sum())
        for inwards in (1, -1):
            found = _run(tokens[::inwards], flags[::inwards])
            if found:
                counts[int(tokens[::inwards][0])] += found
                rows[int(tokens[::inwards][0])] += 1
    token, repeated = counts.most_common(1)[0] if counts else (-1, 0)
    return Repeats(repeated=repeated, supervised=supervised, rows=rows[token], of_rows=of_rows)


def _run(tokens: npt.NDArray[np.int32], flags: npt.NDArray[np.bool_]) -> int:
    """Supervised tokens directly after the first one that equal it; none where the whole row is one token."""
    other = np.flatnonzero(tokens != tokens[0])
    return int(flags[1 : other[0]].sum()) if len(other) else 0


def shared_rows(train: TokenTable, other: TokenTable) -> int:
    """Rows of `other` that stand in `train` with the same tokens."""
    known = {_digest(other, i) for i in range(len(other))}
    found = known & {_digest(train, i) for i in range(len(train))} if known else known
    return sum(_digest(other, i) in found for i in range(len(other)))


def _digest(table: TokenTable, i: int) -> bytes:
    return blake2b(np.ascontiguousarray(table.row(i)[0]).tobytes(), digest_size=16).digest()


def without_last(table: TokenTable, rows: npt.NDArray[np.int64]) -> TokenTable:
    """A copy of some rows in which the last supervised token of each is not learnt, unless it is the only one."""
    pairs = []
    for tokens, flags in (table.row(i) for i in rows.tolist()):
        where = np.flatnonzero(flags)
        kept = np.arange(len(flags)) != where[-1] if len(where) > 1 else True
        pairs.append((tokens.tolist(), (flags & kept).tolist()))
    return TokenTable.from_rows(pairs)


def whole_text(table: TokenTable, rows: npt.NDArray[np.int64]) -> TokenTable:
    """A copy of some rows in which every token but the first and the last counts as to be learnt."""
    pairs = []
    for tokens, _ in (table.row(i) for i in rows.tolist()):
        places = np.arange(len(tokens))
        pairs.append((tokens.tolist(), ((places > 0) & (places < max(2, len(tokens) - 1))).tolist()))
    return TokenTable.from_rows(pairs)
