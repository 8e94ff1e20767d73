"""Facts of tokenised rows that betray a mistake: padding that is learnt, rows that stand in two splits.

Counts only; what they mean is for others to say. Knows tables, not files, tokenizers or models.
"""

from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from loratune.data.table import TokenTable

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
