"""Which rows a trial trains on, in which order, and how rows of many trials become micro-batches.

Knows numpy and torch tensors; nothing of models, adapters or optimisers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from loratune.data.table import TokenTable
from loratune.values import Trial

Rows = npt.NDArray[np.int64]


def subset(rows: int, fraction: float, study_seed: int) -> Rows:
    """The first ceil(fraction · rows) of one shuffle of all rows: smaller subsets lie in larger ones."""
    shuffled = np.random.default_rng(study_seed).permutation(rows)
    return shuffled[: ceil(round(fraction * rows, 9))].copy()  # a view would keep the whole shuffle


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """The last, partial batch of an epoch counts."""
    return ceil(rows / batch_size)


def total_steps(rows: int, batch_size: int, epochs: float) -> int:
    """Optimiser steps of a trial, as transformers' Trainer counts them (a part of an epoch is rounded up)."""
    return max(1, ceil(round(epochs * steps_per_epoch(rows, batch_size), 9)))


def whole_groups(numbers: Rows, group: int) -> Rows:
    """The rows of groups of `group` rows, which lie one after another, in the order of the groups."""
    return numbers if group == 1 else (numbers[:, None] * group + np.arange(group)).ravel()


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialBatches:
    """The batches of one trial: a new permutation of `rows` in every epoch, the last partial batch kept."""

    rows: Rows
    """Row numbers of the training table; where rows belong together, numbers of their groups."""
    batch_size: int
    epochs: float
    seed: int
    group: int = 1
    """Rows that belong together, one after another; `batch_size` counts their groups."""

    def __len__(self) -> int:
        return total_steps(len(self.rows), self.batch_size, self.epochs)

    def __iter__(self) -> Iterator[Rows]:
        """Row numbers of each step, in order."""
        per_epoch = steps_per_epoch(len(self.rows), self.batch_size)
        order = self.rows
        for step in range(len(self)):
            epoch, position = divmod(step, per_epoch)
            if position == 0:
                order = self.rows[self._order(epoch)]
            drawn = order[position * self.batch_size : (position + 1) * self.batch_size]
            yield whole_groups(drawn, self.group)

    def sums(self, values: Rows) -> Rows:
        """[steps] the sum of `values` [rows of the table] over each step's batch."""
        own = values[: len(values) // self.group * self.group].reshape(-1, self.group).sum(1)[self.rows]
        begins = np.arange(0, len(own), self.batch_size)
        epochs = ceil(len(self) / len(begins))
        return np.concatenate([np.add.reduceat(own[self._order(epoch)], begins) for epoch in range(epochs)])[
            : len(self)
        ]

    def _order(self, epoch: int) -> Rows:
        """[rows] the places in `rows` as an epoch draws them."""
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))


def batches_of(trial: Trial, rows: int, *, study_seed: int, group: int = 1) -> TrialBatches:
    """The batches of a trial on a table of `rows` rows."""
    chosen = trial.hyper_parameters
    return TrialBatches(
        rows=subset(rows // group, trial.fraction, study_seed),
        group=group,
        batch_size=chosen.batch_size,
        epochs=chosen.epochs,
        seed=trial.seed,
    )


def sampled_rows(count: int, rows: int | None, *, seed: int, group: int = 1) -> Rows:
    """[rows] ascending, at most `count`; of one shuffle by `seed`, so that samples are nested; None: all."""
    shuffled = np.random.default_rng(seed).permutation(count // group)
    return whole_groups(np.sort(shuffled[: None if rows is None else max(1, rows // group)]), group)


def cut(lengths: Sequence[int] | Rows, *, launch_tokens: int, max_tokens: int) -> list[Rows]:
    """Cut rows into micro-batches at the least cost, by dynamic programming over the rows sorted by length.

    The cost of a micro-batch is its padded tokens plus `launch_tokens`, what it costs to launch one
    expressed in tokens. No micro-batch holds more than `max_tokens` padded tokens unless it is a single
    row. Returns positions in `lengths`, each micro-batch in ascending order.
    """
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    longest = np.maximum(np.asarray(lengths, np.int64)[order], 1)
    count = len(order)
    best = np.zeros(count + 1)
    start = np.zeros(count + 1, np.int64)
    for stop in range(1, count + 1):
        low = max(0, stop - max(1, max_tokens // int(longest[stop - 1])))
        begins = np.arange(low, stop)
        padded = (stop - begins) * longest[low:stop]
        cost = best[low:stop] + padded + launch_tokens
        cost[(padded > max_tokens) & (begins < stop - 1)] = np.inf
        choice = int(np.argmin(cost))
        best[stop], start[stop] = cost[choice], low + choice
    pieces = []
    stop = count
    while stop:
        pieces.append(np.sort(order[start[stop] : stop]))
        stop = int(start[stop])
    return pieces[::-1]


def fill(lengths: Sequence[int] | Rows, *, max_tokens: int) -> list[Rows]:
    """Cut rows, in their order, into as few flat micro-batches as `max_tokens` allows, of equal size.

    No micro-batch holds more tokens unless it is a single row. Returns positions in `lengths`.
    """
    ends = np.cumsum(np.asarray(lengths, np.int64))
    pieces = []
    start, before = 0, 0
    while start < len(ends):
        rest = int(ends[-1]) - before
        share = rest / max(1, ceil(rest / max_tokens))
        # the row that reaches the share belongs to this piece if it still fits
        stop = int(np.searchsorted(ends, before + share, side="left")) + 1
        if stop <= len(ends) and ends[stop - 1] - before > max_tokens:
            stop -= 1
        stop = min(len(ends), max(stop, start + 1))
        pieces.append(np.arange(start, stop))
        start, before = stop, int(ends[stop - 1])
    return pieces


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MicroBatch:
    """Rows as tokens, and the positions whose hidden state predicts a token.

    Either padded on the right into one rectangle, or flat: one line without padding.
    """

    tokens: torch.Tensor
    """[rows, T] int64, right-padded with a token that no supervised position sees; flat [1, N]."""
    positions: torch.Tensor
    """[supervised] flat index of the state that is asked; ascending, so grouped by row."""
    targets: torch.Tensor
    """[supervised, …] the token to be predicted there, or the row's answer."""
    counts: Rows
    """[rows] supervised tokens of each row."""
    lengths: Rows
    """[rows] tokens of each row."""
    starts: Rows
    """[rows + 1] flat index at which each row begins."""
    longest: int
    """Tokens of the longest row."""
    flat: bool

    @property
    def edges(self) -> Rows:
        """`starts`, where what fills a flat line up is cut into rows as long as the longest.

        Attention pays for length, and models have places for no more than the longest row may have.
        """
        end, width = int(self.starts[-1]), self.tokens.numel()
        if end == width:
            return self.starts
        return np.concatenate([self.starts, np.arange(end + self.longest, width, self.longest), [width]])

    @property
    def places(self) -> Rows:
        """[tokens] place of every token in its row."""
        edges = self.edges
        return np.asarray(np.arange(edges[-1]) - np.repeat(edges[:-1], np.diff(edges)), np.int64)


def to_device(values: npt.NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """A copy on the device; the host does not wait for it."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _tokens_of(
    table: TokenTable, rows: Sequence[int] | Rows
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_], Rows]:
    """Tokens of rows one after another, which of them are predicted, and where rows begin [rows + 1]."""
    stored = np.asarray(rows, np.int64)
    if table.index is not None:
        stored = table.index[stored]
    begins = table.offsets[stored]
    lengths = table.offsets[stored + 1] - begins
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    at = np.arange(starts[-1]) + np.repeat(begins - starts[:-1], lengths)
    flags = table.supervised[at]
    if table.answers is None:
        flags[starts[:-1]] = False  # nothing predicts a row's first token
    return table.tokens[at], flags, starts


def _before(table: TokenTable) -> int:
    """How far before a supervised token the state lies that is asked."""
    return 1 if table.answers is None else 0


def _targets(
    table: TokenTable, rows: Sequence[int] | Rows, tokens: npt.NDArray[np.integer[Any]], counts: Rows
) -> npt.NDArray[Any]:
    """[supervised, …] the supervised `tokens`, or the answers of their rows."""
    if table.answers is None:
        return tokens.astype(np.int64)
    stored = np.asarray(rows, np.int64)
    return np.repeat(table.answers[stored if table.index is None else table.index[stored]], counts, axis=0)


def collate(table: TokenTable, rows: Sequence[int] | Rows, *, device: torch.device) -> MicroBatch:
    """Rows of a table as one right-padded rectangle.

    A causal model never looks to the right, so the padding needs no attention mask, whatever token it is; for one that
    does, `MicroBatch.lengths` say where it begins.
    """
    tokens, flags, starts = _tokens_of(table, rows)
    lengths = np.diff(starts)
    count, width = len(lengths), int(lengths.max())
    corners = np.arange(count + 1) * width
    at = np.arange(len(tokens)) + np.repeat(corners[:-1] - starts[:-1], lengths)
    padded = np.zeros((count, width), np.int64)
    padded.reshape(-1)[at] = tokens
    where, counts = np.flatnonzero(flags), np.add.reduceat(flags, starts[:-1], dtype=np.int64)
    return MicroBatch(
        tokens=to_device(padded, device),
        positions=to_device(at[where] - _before(table), device),
        targets=to_device(_targets(table, rows, tokens[where], counts), device),
        counts=counts,
        lengths=lengths,
        starts=corners,
        longest=width,
        flat=False,
    )


def collate_flat(
    table: TokenTable, rows: Sequence[int] | Rows, *, device: torch.device, tokens: int
) -> MicroBatch:
    """Rows of a table as one line of `tokens` tokens, those beyond the rows belonging to none."""
    own, flags, starts = _tokens_of(table, rows)
    line = np.zeros(tokens, np.int64)
    line[: len(own)] = own
    where, counts = np.flatnonzero(flags), np.add.reduceat(flags, starts[:-1], dtype=np.int64)
    return MicroBatch(
        tokens=to_device(line[None], device),
        positions=to_device(where - _before(table), device),
        targets=to_device(_targets(table, rows, line[where], counts), device),
        counts=counts,
        lengths=np.diff(starts),
        starts=starts,
        longest=int(np.diff(starts).max()),
        flat=True,
    )
