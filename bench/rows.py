"""Random rows for measuring speed: all of one length, or with the lengths of a real dataset."""

from pathlib import Path

import numpy as np

from loratune.data.table import TokenTable

_FEWEST, _MOST_TOKENS = 64, 2**21
"""Of rows of one length: drawing long ones takes longer than measuring on them."""
_LENGTHS = Path(__file__).parent / "lengths"


def rows_of(length: str, vocabulary: int, *, rows: int = 2000, supervised: int = 16) -> TokenTable:
    """`length` is a number of tokens, the last `supervised` of them supervised, or a name in bench/lengths.

    Those files hold tokens and supervised tokens of 2,000 rows of a dataset under SmolLM2's tokenizer.
    """
    random = np.random.default_rng(0)
    if length.isdigit():
        pairs = [(int(length), supervised)] * min(rows, max(_FEWEST, _MOST_TOKENS // int(length)))
    else:
        pairs = np.loadtxt(_LENGTHS / f"{length}.csv", int, delimiter=",", skiprows=1)[:rows].tolist()
    return TokenTable.from_rows(
        [(random.integers(0, vocabulary, n).tolist(), (np.arange(n) >= n - s).tolist()) for n, s in pairs]
    )


def drawn_rows(length: str, vocabulary: int, rows: int, *, seed: int) -> TokenTable:
    """Any number of `rows_of`'s rows, drawn with replacement."""
    table = rows_of(length, vocabulary)
    return table.take(np.random.default_rng(seed).integers(0, len(table), rows))
