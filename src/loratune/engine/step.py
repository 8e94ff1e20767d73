"""One training step of a pack: every live slot's next batch, in micro-batches that mix trials.

Knows the base model and the slots; nothing of evaluation, results or who enters when.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import nn

from loratune.data.batches import MicroBatch, Rows, to_device
from loratune.data.table import TokenTable
from loratune.engine.cuts import Cuts
from loratune.engine.graphs import Graphs
from loratune.engine.head import Head, Line
from loratune.engine.resources import DoesNotFit, Failure, attempt
from loratune.engine.shortage import Place, Shortage, unheard
from loratune.engine.slot import Slot, clip_factors
from loratune.errors import ResourceError
from loratune.lora.packed import PackedAdapters, Plan
from loratune.lora.segments import Places, Segment
from loratune.maths.sizes import few_sizes

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Gathered:
    """The rows of all live slots' batches, one entry per row, grouped by slot."""

    slot: Rows
    """Which slot the row belongs to."""
    place: Rows
    """Number of the row within its slot's batch."""
    row: Rows
    """Row of the training table."""


class _Prepared(NamedTuple):
    """What the updates of a step need, made before the first of them."""

    factors: Sequence[torch.Tensor]
    """Per slot, the multiplier that clips its gradient."""
    skipped: Sequence[torch.Tensor]
    """Per slot, 1 where its loss or gradient is not finite, else 0; float32."""
    numbers: torch.Tensor
    """[2, slots] losses and gradient norms, float64."""


def _gather(slots: Sequence[Slot]) -> _Gathered:
    batches = [slot.next_rows() for slot in slots]
    return _Gathered(
        slot=np.concatenate([np.full(len(rows), i) for i, rows in enumerate(batches)]),
        place=np.concatenate([np.arange(len(rows)) for rows in batches]),
        row=np.concatenate(batches),
    )


class TrainingStep:
    """Moves all slots of a pack one optimiser step on.

    Where memory runs out among the micro-batches nothing has been updated yet: their cut is halved, for good,
    and the step begins again with the same rows. The updates come last and need no memory.
    """

    def __init__(
        self,
        head: Head,
        packed: PackedAdapters,
        table: TokenTable,
        cuts: Cuts,
        graphs: Graphs | None = None,
        on_shortage: Callable[[Shortage], None] = unheard,
    ) -> None:
        self._graphs = graphs
        self._head = head
        self._packed = packed
        self._table = table
        self._cuts = cuts
        self._device = next(head.model.parameters()).device
        self._on_shortage = on_shortage
        self._looks_ahead = self._device.type != "cpu"  # a CPU does nothing while the host prepares
        self._ahead: tuple[Rows, MicroBatch] | None = None
        """A micro-batch that may come next, and its rows."""
        self.computed_tokens = 0
        """Tokens in all micro-batches so far, those that fill up a shape included."""

    def __call__(self, slots: Sequence[Slot]) -> int:
        """Train every slot on its next batch; returns the real tokens trained. One host synchronisation.

        Raises `DoesNotFit` where memory does not hold a single row; the slots are then as before.
        """
        gathered = _gather(slots)
        lengths = self._table.lengths[gathered.row]
        while isinstance(found := attempt(partial(self._prepare, slots, gathered), self._device), Failure):
            self._make_room(found, slots, lengths)
        if self._graphs is not None:
            self._graphs.go_on()
        tokens = [int(count) for count in np.bincount(gathered.slot, lengths, minlength=len(slots))]
        self._update(slots, found)
        if self._looks_ahead:
            self._look_ahead(slots)
        losses, norms = self._surely(found.numbers.tolist)
        for slot, loss, norm, count in zip(slots, losses, norms, tokens, strict=True):
            slot.record(loss, norm, count)
        return sum(tokens)

    def _make_room(self, failure: Failure, slots: Sequence[Slot], lengths: Rows) -> None:
        """Undo the step begun; take it without recorded graphs, else with micro-batches of half the size."""
        for slot in slots:
            slot.gradient.zero_()
        if self._graphs is not None and self._graphs.give_way():
            return
        largest = self._cuts.largest(lengths)
        if not self._cuts.halve(largest, longest=int(lengths.max())):
            raise DoesNotFit(failure.message)
        self._on_shortage(
            Shortage(
                place=Place.TRAINING,
                trials=tuple(slot.trial for slot in slots),
                tokens=largest,
                needed=failure.needed,
                now=self._cuts.max_tokens,
            )
        )

    def _prepare(self, slots: Sequence[Slot], gathered: _Gathered) -> _Prepared:
        """All gradients, and all else that the updates need."""
        supervised = self._table.supervised_counts[gathered.row]
        per_slot = np.bincount(gathered.slot, supervised, minlength=len(slots))
        totals = torch.zeros(len(slots), dtype=torch.float64, device=self._device)
        self._packed.board([slot.passenger for slot in slots])
        for piece in self._cuts.pieces(self._table.lengths[gathered.row]):
            batch = self._collated(gathered.row[piece])
            self.computed_tokens += batch.tokens.numel()
            totals += self._train(batch, gathered, piece, slots, per_slot)
        norms = torch.stack(torch._foreach_norm([slot.gradient for slot in slots]))
        return _Prepared(
            factors=clip_factors(norms).unbind(),
            skipped=(~(torch.isfinite(totals) & torch.isfinite(norms))).float().unbind(),
            numbers=torch.stack([totals, norms.double()]),
        )

    def _collated(self, rows: Rows) -> MicroBatch:
        """Rows of the table on the device."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and np.array_equal(ahead[0], rows):
            return ahead[1]
        return self._cuts.collate(self._table, rows, self._device)

    def _look_ahead(self, slots: Sequence[Slot]) -> None:
        """Have the first micro-batch of the next step made, if just these slots go on, before the host waits.

        It depends on its rows alone: where others come after all it is not used, and nothing else has changed.
        """
        coming = [rows for slot in slots if (rows := slot.rows_after_next()) is not None]
        if not coming:
            return
        rows = np.concatenate(coming)
        first = rows[self._cuts.pieces(self._table.lengths[rows])[0]]
        made = attempt(partial(self._cuts.collate, self._table, first, self._device), self._device)
        self._ahead = None if isinstance(made, Failure) else (first, made)

    def _update(self, slots: Sequence[Slot], prepared: _Prepared) -> None:
        """Move all slots on, each exactly once; the host does not wait."""
        for slot, factor, skipped in zip(slots, prepared.factors, prepared.skipped, strict=True):
            self._surely(partial(slot.clip, factor))
            self._surely(partial(slot.update, skipped))

    def _surely(self, work: Callable[[], T]) -> T:
        """Work that fails, if at all, before it changes anything: tried a second time with all else given back.

        Raises `ResourceError` where that fails too: slots that have moved on must not be moved again.
        """
        if not isinstance(found := attempt(work, self._device), Failure):
            return found
        if self._graphs is not None:
            self._graphs.forget()
        if isinstance(found := attempt(work, self._device), Failure):
            raise ResourceError(
                f"memory ran out while a step of the pack was taken ({found.message}); give the device more room."
            )
        return found

    def _train(
        self,
        batch: MicroBatch,
        gathered: _Gathered,
        piece: Rows,
        slots: Sequence[Slot],
        per_slot: np.ndarray,
    ) -> torch.Tensor:
        """Forward and backward of one micro-batch; returns each slot's share [slots] of its mean loss."""
        owners = gathered.slot[piece]
        segments = _segments(owners, batch.starts, slots)
        weights = to_device(np.repeat(1.0 / np.maximum(per_slot[owners], 1.0), batch.counts), self._device)
        shares = np.bincount(owners, batch.counts, minlength=len(slots)).astype(np.int64)
        places = self._places(owners, gathered.place[piece], batch, slots)
        plan = self._packed.plan(segments, batch.tokens.numel(), places)
        nll = self._losses(batch, plan, weights)
        return torch.segment_reduce(
            nll.double() * weights, "sum", lengths=to_device(shares, self._device), unsafe=True, initial=0.0
        )

    def _losses(self, batch: MicroBatch, plan: Plan, weights: torch.Tensor) -> torch.Tensor:
        """NLL [S] of the supervised tokens; the gradients of Σ weights · NLL are added to the slots'."""
        record = self._graphs is not None and batch.flat and self._graphs.takes(batch.tokens.numel())
        line = self._head.line(batch)
        inputs = batch.tokens, batch.positions, batch.targets, weights
        if not record or line is None or plan.route is None or self._graphs is None:
            return self._pass(inputs, line, plan)
        assert isinstance(line.bounds, torch.Tensor), "graphs are recorded on GPUs only"
        count = len(weights)
        rest = few_sizes(count, multiple=64, parts=2) - count  # of the first token, with weight zero
        filled = (batch.tokens, *(nn.functional.pad(each, (0, rest)) for each in inputs[1:]))
        route = plan.route
        dropout = () if route.places is None else route.places

        def body(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
            *own, where, ranges, pieces = tensors[:7]
            drawn = Places(*tensors[7:]) if dropout else None
            now = replace(plan, route=replace(route, pieces=pieces, places=drawn))
            return self._pass(own, Line(where, ranges), now)

        tensors = (*filled, line.places, line.bounds, route.pieces, *dropout)
        kind = route.largest, route.rank_blocks, route.aligned, route.eights, bool(dropout)
        key = kind, route.runs, *(tuple(tensor.shape) for tensor in tensors)
        return self._graphs.run(key, body, tensors, kind=kind, tokens=plan.tokens)[:count]

    def _pass(self, inputs: Sequence[torch.Tensor], line: Line | None, plan: Plan) -> torch.Tensor:
        """Forward and backward pass of (tokens, positions, targets, weights); returns the NLL [S]."""
        tokens, positions, targets, weights = inputs
        with self._head.running(line) as more, self._packed.routed(plan):
            hidden, output = self._head.hidden(tokens, **more)
            states = hidden.reshape(-1, hidden.shape[-1])[positions]
            nll, gradient = self._head.loss_and_gradient(states, targets, weights, output)
            states.backward(gradient)  # type: ignore[no-untyped-call]
        return nll

    def _places(self, owners: Rows, places: Rows, batch: MicroBatch, slots: Sequence[Slot]) -> Places | None:
        """Who and where every token is, if any slot drops inputs."""
        if not any(slots[owner].passenger.dropout > 0 for owner in np.unique(owners)):
            return None
        keys = np.zeros(batch.tokens.numel(), np.int32)
        of_rows = np.concatenate(
            [slots[owner].row_keys(places[owners == owner]) for owner in np.unique(owners)]
        )
        keys[: batch.starts[-1]] = np.repeat(of_rows, np.diff(batch.starts))
        return Places(
            keys=to_device(keys, self._device),
            places=to_device(batch.places.astype(np.int32), self._device),
        )


def _segments(owners: Rows, starts: Rows, slots: Sequence[Slot]) -> list[Segment]:
    """Runs of rows with the same owner, as segments of tokens; owners are in ascending order."""
    edges = np.flatnonzero(np.diff(owners, prepend=-1, append=len(slots)))
    return [
        slots[owners[start]].segment(int(starts[start]), int(starts[stop]))
        for start, stop in pairwise(edges.tolist())
    ]
