"""Facts about prepared data, counted. Knows tables; does not know files or tokenizers."""

from dataclasses import dataclass

import numpy as np

from loratune.data.table import TokenTable
from loratune.values import DataProfile


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
    )
