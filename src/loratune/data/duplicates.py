"""Rows that almost repeat one another, within training and between splits: MinHash finds them, Jaccard confirms.

Rows are compared as sets of three consecutive tokens. What stands in more than a tenth of the rows is the template's
or a label's and is left out, so that short rows under one template do not look alike. Knows tables of tokens only.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from datasketch import MinHash, MinHashLSH

from loratune.data.table import TokenTable
from loratune.values import NearDuplicates

THRESHOLD = 0.8
MOST_ROWS = 20_000
"""Compared of each split: about five seconds."""
_BANDS, _ROWS_OF_BAND = 16, 4
"""MinHash proposes a pair of similarity s with probability 1 - (1 - s^4)^16: 0.9998 at the threshold."""
_PERMUTATIONS = _BANDS * _ROWS_OF_BAND
_MOST_ALIKE = 50
"""Training rows proposed for one row from which it is not indexed beside them: thousands of rows that are nearly the
same would be compared each with each."""
_COMMON_SHARE = 0.1
_FEWEST_FOR_COMMON = 20
_WIDTH = 3
_FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)
_EXAMPLES = 3

Shingles = npt.NDArray[np.uint64]
Pair = tuple[str, int, int]
"""Split, its row, the training row."""


def near_duplicates(
    train: TokenTable, others: Mapping[str, TokenTable], *, seed: int = 0
) -> tuple[NearDuplicates, tuple[Pair, ...]]:
    """What was found, without examples in text, and a few leaked pairs as row numbers.

    Above 20,000 rows a seeded sample is compared, and the counts are those of the sample.
    """
    chosen = {name: _sample(table, seed) for name, table in {"train": train, **others}.items()}
    tables = {"train": train, **others}
    rows = {name: [_shingles(tables[name], i) for i in numbers] for name, numbers in chosen.items()}
    common = _common(rows["train"])
    rows = {name: [_without(each, common) for each in sets] for name, sets in rows.items()}
    index = MinHashLSH(num_perm=_PERMUTATIONS, params=(_BANDS, _ROWS_OF_BAND))
    training = rows["train"]
    repeated = 0
    for number, each in enumerate(training):
        hashed = _hashed(each)
        similar = index.query(hashed)
        repeated += any(_jaccard(each, training[other]) >= THRESHOLD for other in similar)
        if len(similar) < _MOST_ALIKE:
            index.insert(number, hashed)
    leaks: list[tuple[str, int, int]] = []
    pairs: list[Pair] = []
    for name in others:
        found = 0
        for number, nearest in _nearest_rows(rows[name], training, index):
            found += 1
            if len(pairs) < _EXAMPLES:
                pairs.append((name, int(chosen[name][number]), int(chosen["train"][nearest])))
        leaks.append((name, len(rows[name]), found))
    facts = NearDuplicates(threshold=THRESHOLD, rows=len(training), training=repeated, leaks=tuple(leaks))
    return facts, tuple(pairs)


def _sample(table: TokenTable, seed: int) -> npt.NDArray[np.int64]:
    if len(table) <= MOST_ROWS:
        return np.arange(len(table))
    return np.sort(np.random.default_rng(seed).choice(len(table), MOST_ROWS, replace=False))


def _nearest_rows(
    rows: Sequence[Shingles], training: Sequence[Shingles], index: MinHashLSH
) -> Iterator[tuple[int, int]]:
    """(row, its most similar training row) of every row that has one above the threshold."""
    for number, each in enumerate(rows):
        similar = [(_jaccard(each, training[other]), -other) for other in index.query(_hashed(each))]
        best, nearest = max(similar, default=(0.0, 0))
        if best >= THRESHOLD:
            yield number, -nearest


def _shingles(table: TokenTable, row: int) -> Shingles:
    """[≥ 1] ascending 32-bit hashes of three consecutive tokens; of a shorter row one hash of all of it."""
    tokens = table.row(row)[0].astype(np.uint64)
    width = min(_WIDTH, len(tokens))
    count = len(tokens) - width + 1
    mixed = np.zeros(count, np.uint64)
    for place in range(width):
        mixed ^= (tokens[place : place + count] + np.uint64(1)) * _FACTORS[place]
    mixed = (mixed ^ (mixed >> np.uint64(29))) * _FACTORS[0]
    return np.unique(mixed >> np.uint64(32))


def _common(rows: Sequence[Shingles]) -> Shingles:
    """Hashes that stand in more than a tenth of the rows."""
    if len(rows) < _FEWEST_FOR_COMMON:
        return np.zeros(0, np.uint64)
    hashes, counts = np.unique(np.concatenate(rows), return_counts=True)
    return np.asarray(hashes[counts > _COMMON_SHARE * len(rows)], np.uint64)


def _without(row: Shingles, common: Shingles) -> Shingles:
    """The row's own hashes; a row that has none of its own keeps all."""
    own = np.setdiff1d(row, common, assume_unique=True)
    return own if len(own) else row


def _hashed(row: Shingles) -> MinHash:
    found = MinHash(num_perm=_PERMUTATIONS, hashfunc=int)
    found.update_batch(row.tolist())
    return found


def _jaccard(one: Shingles, other: Shingles) -> float:
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)
