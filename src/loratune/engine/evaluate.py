"""Adapters and the bare base on the same rows: NLL and exact match of every row, without gradients.

Knows no trials, no metrics and no labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from loratune.data.batches import MicroBatch, collate, cut
from loratune.data.table import TokenTable
from loratune.engine.head import Head
from loratune.engine.step import Cuts
from loratune.lora.layout import Adapter
from loratune.lora.packed import PackedAdapters, Passenger, Segment


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Evaluation:
    """One model on the rows of a table."""

    example_nll: npt.NDArray[np.float64]
    """[rows] sum over the row's supervised tokens, nats."""
    exact_match: npt.NDArray[np.bool_]
    """[rows] whether every supervised token is the most likely one given the true tokens before it.

    That is the case exactly where greedy decoding of the same length gives the completion.
    """
    supervised_tokens: int
    predictions: npt.NDArray[np.int64] | None = None
    """[rows] index of the most likely label, for labelled data."""

    @property
    def nll(self) -> float:
        """Nats per supervised token."""
        return float(self.example_nll.sum() / max(1, self.supervised_tokens))


class Evaluator:
    """Forward passes of several models at once; the hooks of `packed` must be in place."""

    def __init__(self, head: Head, packed: PackedAdapters, cuts: Cuts) -> None:
        self.head = head
        self.packed = packed
        self.cuts = cuts
        self.device = next(head.model.parameters()).device

    @torch.no_grad()
    def evaluate(self, models: Sequence[Adapter | None], table: TokenTable) -> list[Evaluation]:
        """One `Evaluation` per model; None is the bare base."""
        nll = np.zeros((len(models), len(table)))
        misses = np.zeros((len(models), len(table)))
        for chosen, rows, passengers in self.work(models, table.lengths):
            batch = collate(table, rows, device=self.device)
            states, output = self.states(batch, passengers)
            targets = batch.targets.repeat(len(passengers))
            losses, hits = self.head.score(states, targets, output)
            losses_of = losses.double().cpu().numpy().reshape(len(passengers), -1)
            misses_of = (~hits).cpu().numpy().reshape(len(passengers), -1)
            owner = np.repeat(np.arange(len(rows)), batch.counts)
            for model, row_losses, row_misses in zip(chosen, losses_of, misses_of, strict=True):
                nll[model, rows] = np.bincount(owner, row_losses, minlength=len(rows))
                misses[model, rows] = np.bincount(owner, row_misses, minlength=len(rows))
        supervised = int(table.supervised_counts.sum())
        return [
            Evaluation(example_nll=nll[i], exact_match=misses[i] == 0, supervised_tokens=supervised)
            for i in range(len(models))
        ]

    def work(
        self, models: Sequence[Adapter | None], lengths: npt.NDArray[np.int64]
    ) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], list[Passenger | None]]]:
        """Micro-batches as (model numbers, rows, passengers): every model sees every row once."""
        at_once = max(1, self.cuts.max_tokens // max(1, int(lengths.max(initial=1))))
        passengers = [None if m is None else Passenger(m, trainable=False) for m in models]
        pieces = []
        for start in range(0, len(models), at_once):
            chosen = np.arange(start, min(len(models), start + at_once))
            share = max(1, self.cuts.max_tokens // len(chosen))
            launch = max(1, self.cuts.launch_tokens // len(chosen))
            pieces += [
                (chosen, rows, [passengers[i] for i in chosen])
                for rows in cut(lengths, launch_tokens=launch, max_tokens=share)
            ]
        return pieces

    def states(
        self, batch: MicroBatch, passengers: Sequence[Passenger | None], **inputs: Any
    ) -> tuple[torch.Tensor, Any]:
        """States [models · positions, D] at the batch's positions, model by model; the decoder's output."""
        rows, width = batch.tokens.shape
        segments = [
            Segment(passenger=passenger, start=i * rows, stop=(i + 1) * rows)
            for i, passenger in enumerate(passengers)
            if passenger is not None
        ]
        count = len(passengers)
        repeated = {name: value.repeat(count, *[1] * (value.ndim - 1)) for name, value in inputs.items()}
        with self.packed.route(segments, (count * rows, width)):
            hidden, output = self.head.hidden(batch.tokens.repeat(count, 1), **repeated)
        flat = hidden.reshape(count, rows * width, -1)
        return flat[:, batch.positions].flatten(0, 1), output
