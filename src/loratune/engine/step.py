"""One training step of a pack: every live slot's next batch, in micro-batches that mix trials.

Knows the base model and the slots; nothing of evaluation, results or who enters when.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from loratune.data.batches import MicroBatch, Rows, collate, cut
from loratune.data.table import TokenTable
from loratune.engine.head import Head
from loratune.engine.slot import Slot
from loratune.lora.packed import PackedAdapters, Segment


@dataclass(frozen=True, kw_only=True, slots=True)
class Cuts:
    """How micro-batches are cut."""

    max_tokens: int
    """Padded tokens of a micro-batch, at most."""
    launch_tokens: int
    """Cost of one more micro-batch, in tokens."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Gathered:
    """The rows of all live slots' batches, one entry per row, grouped by slot."""

    slot: Rows
    """Which slot the row belongs to."""
    place: Rows
    """Number of the row within its slot's batch."""
    row: Rows
    """Row of the training table."""


def _gather(slots: Sequence[Slot]) -> _Gathered:
    batches = [slot.next_rows() for slot in slots]
    return _Gathered(
        slot=np.concatenate([np.full(len(rows), i) for i, rows in enumerate(batches)]),
        place=np.concatenate([np.arange(len(rows)) for rows in batches]),
        row=np.concatenate(batches),
    )


class TrainingStep:
    """Moves all slots of a pack one optimiser step on."""

    def __init__(self, head: Head, packed: PackedAdapters, table: TokenTable, cuts: Cuts) -> None:
        self._head = head
        self._packed = packed
        self._table = table
        self._cuts = cuts
        self._device = next(head.model.parameters()).device

    def __call__(self, slots: Sequence[Slot]) -> int:
        """Train every slot on its next batch; returns the real tokens trained. One host synchronisation."""
        gathered = _gather(slots)
        lengths = self._table.lengths[gathered.row]
        supervised = self._table.supervised_counts[gathered.row]
        per_slot = np.bincount(gathered.slot, supervised, minlength=len(slots))
        totals = torch.zeros(2, len(slots), dtype=torch.float64, device=self._device)
        for piece in cut(lengths, launch_tokens=self._cuts.launch_tokens, max_tokens=self._cuts.max_tokens):
            batch = collate(self._table, gathered.row[piece], device=self._device)
            self._train(batch, gathered, piece, slots, per_slot, totals[0])
        for i, slot in enumerate(slots):
            norm = torch.linalg.vector_norm(slot.gradient)
            slot.clip(norm)
            totals[1, i] = norm
        losses, norms = totals.tolist()
        tokens = np.bincount(gathered.slot, lengths, minlength=len(slots)).astype(np.int64)
        for slot, loss, norm, count in zip(slots, losses, norms, tokens, strict=True):
            slot.update(loss, norm, int(count))
        return int(tokens.sum())

    def _train(
        self,
        batch: MicroBatch,
        gathered: _Gathered,
        piece: Rows,
        slots: Sequence[Slot],
        per_slot: np.ndarray,
        losses: torch.Tensor,
    ) -> None:
        """Forward and backward of one micro-batch; adds each slot's share of its mean loss to `losses`."""
        owners = gathered.slot[piece]
        segments, bounds = self._segments(owners, gathered.place[piece], slots)
        weights = np.repeat(1.0 / np.maximum(per_slot[owners], 1.0), batch.counts)
        token_weights = torch.from_numpy(weights).to(self._device)
        rows, width = batch.tokens.shape
        with self._packed.route(segments, (rows, width)):
            hidden, output = self._head.hidden(batch.tokens)
            states = hidden.reshape(rows * width, -1)[batch.positions]
            nll, gradient = self._head.loss_and_gradient(states, batch.targets, token_weights, output)
            states.backward(gradient)  # type: ignore[no-untyped-call]
        weighted = nll.double() * token_weights
        ends = np.concatenate([[0], np.cumsum(batch.counts)])
        for slot_index, start, stop in bounds:
            losses[slot_index] += weighted[int(ends[start]) : int(ends[stop])].sum()

    def _segments(
        self, owners: Rows, places: Rows, slots: Sequence[Slot]
    ) -> tuple[list[Segment], list[tuple[int, int, int]]]:
        """Runs of rows with the same owner, as segments and as (slot, first row, end row)."""
        changes = np.flatnonzero(np.diff(owners)) + 1
        starts = np.concatenate([[0], changes])
        stops = np.concatenate([changes, [len(owners)]])
        segments, bounds = [], []
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            owner = int(owners[start])
            segments.append(slots[owner].segment(start, places[start:stop]))
            bounds.append((owner, start, stop))
        return segments, bounds
