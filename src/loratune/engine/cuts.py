"""How rows become micro-batches on the device at hand: flat lines, or rectangles of like lengths.

Knows rows and lengths; nothing of models, trials or adapters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from loratune.data.batches import MicroBatch, Rows, collate, collate_flat, cut, fill
from loratune.data.table import TokenTable

_MULTIPLE = 64
"""Tokens of a flat line are a multiple of this: what matrix products like."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cuts:
    """How micro-batches are cut."""

    max_tokens: int
    """Tokens of a micro-batch, padding included, at most."""
    launch_tokens: int
    """Cost of one more micro-batch, in tokens."""
    flat: bool = False
    """Whether micro-batches are flat: one line of tokens, the rows one behind the other."""

    def pieces(self, lengths: Sequence[int] | Rows) -> list[Rows]:
        """Positions in `lengths`, one array per micro-batch; flat ones keep the order."""
        if self.flat:
            return fill(lengths, max_tokens=self.max_tokens)
        return cut(lengths, launch_tokens=self.launch_tokens, max_tokens=self.max_tokens)

    def collate(self, table: TokenTable, rows: Sequence[int] | Rows, device: torch.device) -> MicroBatch:
        """Those rows as one micro-batch on the device."""
        if self.flat:
            return collate_flat(table, rows, device=device, multiple=_MULTIPLE)
        return collate(table, rows, device=device)
