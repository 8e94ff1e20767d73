"""How rows become micro-batches on the device at hand, and what one step trains on.

A portion is a function of the rows alone, so it can be made while the device is still busy with the step before.
Knows slots, rows and adapters' places; nothing of losses, gradients or optimisers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from loratune.data.batches import MicroBatch, Rows, collate, collate_flat, cut, fill, to_device, whole_groups
from loratune.data.table import TokenTable
from loratune.engine.body import Body, FlatRows, PaddedRows
from loratune.engine.slot import Slot
from loratune.lora.packed import PackedAdapters, Plan
from loratune.lora.segments import PackMember, Places, Segment
from loratune.maths.sizes import line_tokens
from loratune.objectives.objective import Head, Objective, Supervised

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
    """Whether micro-batches are flat: one line of tokens, the rows one after another."""
    recorded: int = 0
    """Tokens of the longest line that is recorded as a graph, for which few sizes are good."""
    line: Callable[[int], int] | None = None
    """Their sizes."""
    group: int = 1
    """Rows that belong together, one after another: no cut separates them."""
    spares: int | None = None
    """Micro-batches of at least this size have the activations of all layers computed again, whatever is
    predicted: a single row was too large. None: none have."""

    def pieces(self, lengths: Sequence[int] | Rows) -> list[Rows]:
        """Positions in `lengths`, one array per micro-batch; flat ones keep the order."""
        groups = np.asarray(lengths, np.int64).reshape(-1, self.group)
        if self.flat:
            pieces = fill(groups.sum(1), max_tokens=self.max_tokens)
        else:  # padded to its longest row a group is `group` rows
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
        """Take smaller micro-batches after one of `tokens` tokens was too large; False if it was one row of `longest`.

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
            if self.line is not None and tokens <= self.recorded:
                filled = self.line(tokens)
            else:
                filled = line_tokens(tokens, multiple=_MULTIPLE[device.type], recorded=self.recorded)
            return collate_flat(table, rows, device=device, tokens=filled)
        return collate(table, rows, device=device)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Gathered:
    """The rows of all slots' batches, one entry per row, grouped by slot."""

    slots: Sequence[Slot]
    steps: Sequence[int]
    """Which of its steps each slot takes with them."""
    slot: Rows
    """Which slot the row belongs to."""
    place: Rows
    """Number of the row within its slot's batch."""
    row: Rows
    """Row of the training table."""

    @classmethod
    def of(cls, slots: Sequence[Slot], *, ahead: int = 0) -> "Gathered | None":
        """The rows of the slots' coming step, or of a later one if just these go on; None where none does."""
        batches = [(slot, rows) for slot in slots if (rows := slot.rows_of(ahead)) is not None]
        if not batches:
            return None
        sizes = [len(rows) for _, rows in batches]
        return cls(
            slots=[slot for slot, _ in batches],
            steps=[slot.step + ahead for slot, _ in batches],
            slot=np.repeat(np.arange(len(batches)), sizes),
            place=np.concatenate([np.arange(size) for size in sizes]),
            row=np.concatenate([rows for _, rows in batches]),
        )

    def equals(self, other: "Gathered") -> bool:
        """Whether they are the same steps of the same slots."""
        same = len(self.slots) == len(other.slots) and self.steps == other.steps
        return same and all(own is theirs for own, theirs in zip(self.slots, other.slots, strict=True))


class Portion(NamedTuple):
    """One micro-batch of a step."""

    batch: MicroBatch
    asked: Supervised
    """Its supervised positions; weights in float64."""
    shares: torch.Tensor
    """[slots] supervised tokens of each slot."""
    plan: Plan
    rows: FlatRows | PaddedRows | None
    """Where the rows lie, as far as the model must know."""


class Portions:
    """Makes the micro-batches of a step."""

    def __init__(
        self, body: Body, objective: Objective, packed: PackedAdapters, table: TokenTable, cuts: Cuts
    ) -> None:
        self.table = table
        self._body = body
        self._objective = objective
        self._packed = packed
        self._cuts = cuts
        self._device = body.device

    def pieces(self, gathered: Gathered) -> list[Rows]:
        """Positions of the rows of each micro-batch."""
        return self._cuts.pieces(self.table.lengths[gathered.row])

    def portion(self, gathered: Gathered, piece: Rows) -> Portion:
        """One of them, on the device; the host does not wait."""
        owners, count = gathered.slot[piece], len(gathered.slots)
        counts = self._objective.counts(self.table.supervised_counts[gathered.row])
        per_slot = np.bincount(gathered.slot, counts, minlength=count)
        batch = self._cuts.collate(self.table, gathered.row[piece], self._device)
        weights = np.repeat(1.0 / np.maximum(per_slot[owners], 1.0), batch.counts)
        shares = np.bincount(owners, batch.counts, minlength=count).astype(np.int64)
        places = self._places(gathered, piece, batch)
        segments = _segments(owners, batch.starts, gathered.slots)
        members = [slot.member for slot in gathered.slots]
        asked = asked_of(self._objective, batch, weights, heads_of(self._objective, members, shares))
        known = self.table.row_references
        references = None if known is None else known[gathered.row[piece]]
        betas = np.array([beta_of(member) for member in members])[owners]
        return Portion(
            batch=batch,
            asked=of_groups(asked, batch, betas, references),
            shares=to_device(shares, self._device),
            plan=self._packed.plan(segments, batch.tokens.numel(), places, members=members),
            rows=self._body.rows(batch),
        )

    def _places(self, gathered: Gathered, piece: Rows, batch: MicroBatch) -> Places | None:
        """Row key and position of every token, if any slot has dropout."""
        owners, places = gathered.slot[piece], gathered.place[piece]
        present = np.unique(owners)
        if not any(gathered.slots[owner].member.dropout > 0 for owner in present):
            return None
        keys = np.zeros(batch.tokens.numel(), np.int32)
        of_rows = [
            gathered.slots[owner].row_keys(gathered.steps[owner], places[owners == owner])
            for owner in present
        ]
        keys[: batch.starts[-1]] = np.repeat(np.concatenate(of_rows), np.diff(batch.starts))
        return Places(
            keys=to_device(keys, self._device),
            places=to_device(batch.places.astype(np.int32), self._device),
        )


def asked_of(
    objective: Objective,
    batch: MicroBatch,
    weights: npt.NDArray[np.float64] | None = None,
    heads: Sequence[Head] = (),
) -> Supervised:
    """The supervised positions of a micro-batch, with their weights [S], 1 where they are not given."""
    device = batch.targets.device
    given = np.ones(len(batch.targets)) if weights is None else weights
    rows = np.repeat(np.arange(len(batch.counts)), batch.counts) if objective.group > 1 else None
    return Supervised(
        targets=batch.targets,
        weights=to_device(given, device),
        rows=None if rows is None else to_device(rows, device),
        row_count=0 if rows is None else len(batch.counts),
        heads=heads,
    )


def of_groups(
    asked: Supervised,
    batch: MicroBatch,
    betas: npt.NDArray[np.float64],
    references: npt.NDArray[np.float64] | None,
) -> Supervised:
    """`asked` with what rows [rows] have of their trials and the base model, where they are grouped; else as it is."""
    if asked.rows is None:
        return asked
    device = batch.targets.device
    of_base = None if references is None else to_device(np.repeat(references, batch.counts), device)
    return asked._replace(betas=to_device(np.repeat(betas, batch.counts), device), references=of_base)


def beta_of(member: PackMember) -> float:
    """Beta of the member's trial; NaN where it names none."""
    beta = member.adapter.hyper_parameters.beta
    return float("nan") if beta is None else beta


def heads_of(objective: Objective, members: Sequence[PackMember], shares: Rows) -> tuple[Head, ...]:
    """The members' heads, each for its share of positions [members], one member's after another's."""
    if not objective.head:
        return ()
    ends = np.cumsum(shares)
    return tuple(
        Head(int(end - share), int(end), member.head, member.head_gradients)
        for member, share, end in zip(members, shares, ends, strict=True)
        if share
    )


def _segments(owners: Rows, starts: Rows, slots: Sequence[Slot]) -> list[Segment]:
    """Runs of rows with the same owner, as segments of tokens; owners are in ascending order."""
    edges = np.flatnonzero(np.diff(owners, prepend=-1, append=len(slots)))
    return [
        slots[owners[start]].segment(int(starts[start]), int(starts[stop]))
        for start, stop in pairwise(edges.tolist())
    ]
