"""How rows become micro-batches on the device at hand: flat lines, or rectangles of like lengths.

Knows rows and lengths; nothing of models, trials or adapters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from loratune.data.batches import MicroBatch, Rows, collate, collate_flat, cut, fill, whole_groups
from loratune.data.table import TokenTable
from loratune.maths.sizes import line_tokens

_MULTIPLE = {"cpu": 32, "cuda": 128}
"""Tokens of a flat line are a multiple of this: what matrix products like, and shapes that repeat."""


@dataclass(kw_only=True, slots=True)
class Cuts:
    """How micro-batches are cut."""

    max_tokens: int
    """Tokens of a micro-batch, padding included, at most."""
    launch_tokens: int
    """Cost of one more micro-batch, in tokens."""
    flat: bool = False
    """Whether micro-batches are flat: one line of tokens, the rows one behind the other."""
    recorded: int = 0
    """Lines of at most so many tokens are recorded as graphs, for which few sizes are good."""
    group: int = 1
    """Rows that belong together, one behind the other: no cut separates them."""

    def pieces(self, lengths: Sequence[int] | Rows) -> list[Rows]:
        """Positions in `lengths`, one array per micro-batch; flat ones keep the order."""
        groups = np.asarray(lengths, np.int64).reshape(-1, self.group)
        if self.flat:
            pieces = fill(groups.sum(1), max_tokens=self.max_tokens)
        else:  # padded to its longest row a group is so many rows
            launch = max(1, self.launch_tokens // self.group)
            pieces = cut(
                groups.max(1), launch_tokens=launch, max_tokens=max(1, self.max_tokens // self.group)
            )
        return [whole_groups(piece, self.group) for piece in pieces]

    def largest(self, lengths: Rows) -> int:
        """Tokens of the largest micro-batch, padding included (but for what fills a flat line up)."""
        pieces = [lengths[piece] for piece in self.pieces(lengths)]
        return max(int(rows.sum() if self.flat else len(rows) * rows.max()) for rows in pieces)

    def halve(self, tokens: int, *, longest: int) -> bool:
        """After one of so many tokens was too large; False where it was a single row of `longest` already.

        Where rows belong together, a single group.
        """
        smaller = max(self.group * longest, min(self.max_tokens, tokens) // 2)
        if smaller >= min(self.max_tokens, tokens):
            return False
        self.max_tokens = smaller
        return True

    def collate(self, table: TokenTable, rows: Sequence[int] | Rows, device: torch.device) -> MicroBatch:
        """Those rows as one micro-batch on the device."""
        if self.flat:
            tokens = int(table.lengths[rows].sum())
            filled = line_tokens(tokens, multiple=_MULTIPLE[device.type], recorded=self.recorded)
            return collate_flat(table, rows, device=device, tokens=filled)
        return collate(table, rows, device=device)
