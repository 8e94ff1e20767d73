"""How rows become micro-batches on the device at hand: flat lines, or rectangles of like lengths.

Knows rows and lengths; nothing of models, trials or adapters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from loratune.data.batches import MicroBatch, Rows, collate, collate_flat, cut, fill
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

    def pieces(self, lengths: Sequence[int] | Rows) -> list[Rows]:
        """Positions in `lengths`, one array per micro-batch; flat ones keep the order."""
        if self.flat:
            return fill(lengths, max_tokens=self.max_tokens)
        return cut(lengths, launch_tokens=self.launch_tokens, max_tokens=self.max_tokens)

    def largest(self, lengths: Rows) -> int:
        """Tokens of the largest micro-batch, padding included (but for what fills a flat line up)."""
        pieces = [lengths[piece] for piece in self.pieces(lengths)]
        return max(int(rows.sum() if self.flat else len(rows) * rows.max()) for rows in pieces)

    def halve(self, tokens: int, *, longest: int) -> bool:
        """After one of so many tokens was too large; False where it was a single row of `longest` already."""
        smaller = max(longest, min(self.max_tokens, tokens) // 2)
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
