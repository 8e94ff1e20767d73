"""Which rows train, validate and test: by content and seed alone, stratified where there are labels.

Rows are drawn in the order of their digests (a keyed hash of the content): the same rows in another order, or
on another platform, are split alike, and a new row moves few others. Knows arrays; neither files nor tokens.
"""

from math import ceil

import numpy as np
import numpy.typing as npt

from loratune.errors import DataError

Rows = npt.NDArray[np.int64]
Labels = npt.NDArray[np.int32] | None

SHARE = 0.15
"""Share of the rows that go into a split that has to be made."""
PLENTY = 2000
"""Rows beyond which such a split takes the smallest share only."""
SMALLEST_SHARE = 0.1
FEWEST_TO_SPLIT = 10
"""Fewest rows to split: below, a share of 15 % is not a row or two."""
FEWEST_ROWS = 2
"""Fewest rows of any split: a paired test needs two."""


def allocate(counts: npt.NDArray[np.int64], total: int, leave_one: bool = True) -> npt.NDArray[np.int64]:
    """How many of each class to draw, in proportion: [classes] summing to `total` (≤ the sum of `counts`).

    Largest remainders (Hamilton's method), in whole numbers. With `leave_one`, the last row of a class is
    drawn only where nothing else is left.
    """
    rows = int(counts.sum())
    quotas = counts * total // max(rows, 1)
    remainders = counts * total - quotas * rows
    order = np.lexsort((-remainders, leave_one & (quotas + 1 >= counts)))
    quotas[order[: total - int(quotas.sum())]] += 1
    return quotas


def draw(
    digests: npt.NDArray[np.bytes_], labels: Labels, rows: Rows, count: int, leave_one: bool = True
) -> tuple[Rows, Rows]:
    """`count` of `rows` and the rest, both ascending. `digests` and `labels` are of all rows."""
    count = min(count, len(rows))
    order = rows[np.argsort(digests[rows], kind="stable")]
    if labels is None:
        chosen = np.arange(len(order)) < count
    else:
        classes = labels[order]
        counts = np.bincount(classes)
        by_class = np.argsort(classes, kind="stable")
        rank = np.empty(len(order), np.int64)
        rank[by_class] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        chosen = rank < allocate(counts, count, leave_one)[classes]
    return np.sort(order[chosen]), np.sort(order[~chosen])


def split_off(
    digests: npt.NDArray[np.bytes_], labels: Labels, rows: Rows, share_of: int, limit: int | None, name: str
) -> tuple[Rows, Rows]:
    """A new split and what is left of `rows`: 15 % of `share_of` rows, in large data down to 10 %.

    Beyond `PLENTY` rows no more than 10 % are taken; `limit` is the user's own bound on the count.

    Raises `DataError` where there are too few rows.
    """
    if share_of < FEWEST_TO_SPLIT:
        raise DataError(
            f"the training data must have at least {FEWEST_TO_SPLIT} rows to split off {name} rows, got "
            f"{share_of}; "
            f"add rows or give the {name} rows with --{name}."
        )
    most = max(PLENTY, ceil(SMALLEST_SHARE * share_of)) if limit is None else limit
    count = min(int(SHARE * share_of + 0.5), most)
    return draw(digests, labels, rows, count)


def without_duplicates(
    digests: npt.NDArray[np.bytes_], rows: Rows, *others: npt.NDArray[np.bytes_]
) -> tuple[Rows, int]:
    """The rows whose content is in none of `others`, and how many were taken out."""
    seen = np.isin(digests[rows], np.concatenate(others))
    return rows[~seen], int(seen.sum())
