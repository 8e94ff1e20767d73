"""Facts about prepared data, counted. Knows tables; does not know files or tokenizers."""

from dataclasses import dataclass

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
        rows=len(train),
        validation_rows=len(validation),
        test_rows=len(test),
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
