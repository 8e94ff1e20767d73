"""Sizes of the micro-batches that are to come, as far as a pack is known: recordings are planned by them.

Knows slots and rows; nothing of the model.
"""

from collections.abc import Sequence

import numpy as np

from loratune.data.batches import Rows
from loratune.data.table import TokenTable
from loratune.engine.portions import Cuts
from loratune.engine.slot import Slot

_UNEVEN = 1.25
"""A part of a step may have more predicting positions than the mean."""


class ExpectedSizes:
    """Of the steps of a pack."""

    def __init__(self, table: TokenTable, cuts: Cuts) -> None:
        self._table, self._cuts = table, cuts
        self._longest = int(table.lengths.max(initial=0)) * cuts.group
        self._known: dict[Slot, tuple[Rows, Rows]] = {}
        """Tokens and positions of each of a slot's steps."""

    def new(self, slots: Sequence[Slot]) -> tuple[Rows, Rows] | None:
        """Tokens and predicting positions of every micro-batch to come if just these slots go on to their end.

        None where they are those that were given last.
        """
        if list(self._known) == list(slots):
            return None
        values = self._table.lengths, np.asarray(self._table.supervised_counts, np.int64)
        self._known = {
            slot: self._known.get(slot) or (slot.batches.sums(values[0]), slot.batches.sums(values[1]))
            for slot in slots
        }
        left = max((slot.total_steps - slot.step for slot in slots), default=0)
        tokens, positions = np.zeros(left, np.int64), np.zeros(left, np.int64)
        for slot, (own, predicting) in self._known.items():
            tokens[: slot.total_steps - slot.step] += own[slot.step :]
            positions[: slot.total_steps - slot.step] += predicting[slot.step :]
        parts = np.maximum(1, -(-tokens // self._cuts.max_tokens))
        whole = parts == 1
        pieces = np.where(whole, tokens, tokens // parts + self._longest)
        return pieces, np.where(whole, positions, (_UNEVEN * positions / parts).astype(np.int64))
