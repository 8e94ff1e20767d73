"""Adapters and the bare base on the same rows: loss and exact match of every row, without gradients.

Knows no trials, no metrics and no objective in particular; of labels only which one was predicted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from loratune.data.batches import MicroBatch, Rows
from loratune.data.table import TokenTable
from loratune.engine.body import Body
from loratune.engine.portions import Cuts, asked_of, beta_of, heads_of, of_groups
from loratune.lora.layout import Adapter, AdapterLayout
from loratune.lora.packed import PackedAdapters
from loratune.lora.segments import PackMember, Segment
from loratune.maths.sizes import CAPACITY
from loratune.objectives.objective import Objective
from loratune.values import default_recipe


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Evaluation:
    """One model on the rows of a table."""

    example_nll: npt.NDArray[np.float64]
    """[rows] sum over the row's supervised tokens, nats. Here and below: where rows belong together, [groups]."""
    exact_match: npt.NDArray[np.bool_]
    """[rows] whether every supervised token is the most likely one given the true tokens before it.

    That is the case exactly where greedy decoding of the same length gives the completion.
    """
    counts: npt.NDArray[np.int64]
    """[rows] supervised tokens of each row; of groups what each counts."""
    supervised_tokens: int
    """What the rows count for in the mean: their supervised tokens, or what the objective counts."""
    tokens: npt.NDArray[np.int32] | None = None
    """[supervised tokens] the most likely one at each position, row after row; None where they were not kept."""
    predictions: npt.NDArray[Any] | None = None
    """[rows] index of the most likely label, for labelled data; where tables have answers [rows, …] what was found in
    their place."""
    margins: npt.NDArray[np.float64] | None = None
    """[groups] by how much each is right, in nats; None where the objective has no such thing."""
    generated: tuple[npt.NDArray[np.int32], ...] | None = None
    """[rows] tokens that the model writes by itself after each row's prompt, without the end token."""

    @property
    def nll(self) -> float:
        """Nats per supervised token."""
        return float(self.example_nll.sum() / max(1, self.supervised_tokens))


class Evaluator:
    """Forward passes of several models at once; the hooks of `packed` must be in place."""

    def __init__(
        self,
        body: Body,
        objective: Objective,
        packed: PackedAdapters,
        cuts: Cuts,
        *,
        keeps_tokens: bool = False,
    ) -> None:
        """`keeps_tokens`: whether evaluations hold the most likely tokens."""
        self.body = body
        self.objective = objective
        self.packed = packed
        self.cuts = cuts
        self.keeps_tokens = keeps_tokens
        self.device = body.device
        self._bare = self._untrained()

    def _untrained(self) -> PackMember:
        """The bare base: no adapter, and the head with which a trial of seed 0 begins."""
        recipe, head = default_recipe(), self.objective.head
        layout = AdapterLayout.of(recipe, (), head)
        dtype = torch.float64 if self.body.dtype == torch.float64 else torch.float32
        weights = self.objective.initial_head(0).to(self.device, dtype)
        return PackMember(Adapter(hyper_parameters=recipe, layout=layout, weights=weights), trainable=False)

    @torch.no_grad()
    def evaluate(self, models: Sequence[Adapter | None], table: TokenTable) -> list[Evaluation]:
        """One `Evaluation` per model; None is the bare base."""
        nll = np.zeros((len(models), len(table)))
        misses = np.zeros((len(models), len(table)))
        supervised = int(table.supervised_counts.sum())
        starts = np.cumsum(table.supervised_counts) - table.supervised_counts
        kept = np.zeros((len(models), supervised), np.int32) if self.keeps_tokens else None
        answers = table.row_answers
        found = None if answers is None else np.zeros((len(models), *answers.shape), answers.dtype)
        work = self.work(models, table.lengths, self.cuts)
        scored = [(chosen, rows, *self._score(table, rows, members)) for chosen, rows, members in work]
        # read at the end, so that the device never waits for the host
        margins = np.zeros((len(models), len(table))) if scored and scored[0][-1] is not None else None
        for chosen, rows, counts, losses, hits, tokens, margin in scored:
            shape = (len(chosen), -1)
            owner = np.repeat(np.arange(len(rows)), counts)
            first = np.cumsum(counts) - counts
            if found is not None and tokens is not None:  # a row's answer is found at its last position
                given = tokens.cpu().numpy().reshape(len(chosen), -1, *tokens.shape[1:])
                found[np.ix_(chosen, rows)] = given[:, first + counts - 1]
            elif kept is not None and tokens is not None:
                places = np.arange(len(owner)) + (starts[rows] - first)[owner]
                kept[np.ix_(chosen, places)] = tokens.cpu().numpy().reshape(shape)
            losses_of = losses.double().cpu().numpy().reshape(shape)
            misses_of = (~hits).cpu().numpy().reshape(shape)
            for model, row_losses, row_misses in zip(chosen, losses_of, misses_of, strict=True):
                nll[model, rows] = np.bincount(owner, row_losses, minlength=len(rows))
                misses[model, rows] = np.bincount(owner, row_misses, minlength=len(rows))
            if margins is not None and margin is not None:
                margins[np.ix_(chosen, rows)] = margin.double().cpu().numpy().reshape(shape)[:, first]
        group, counts = self.objective.group, self.objective.counts(table.supervised_counts)
        return [
            Evaluation(
                example_nll=nll[i].reshape(-1, group).sum(1),
                exact_match=misses[i].reshape(-1, group).sum(1) == 0,
                counts=table.supervised_counts if group == 1 else counts.reshape(-1, group).sum(1),
                supervised_tokens=int(counts.sum()),
                tokens=None if kept is None or found is not None else kept[i],
                predictions=None if found is None else found[i],
                margins=None if margins is None else margins[i, ::group],
            )
            for i in range(len(models))
        ]

    def _score(
        self, table: TokenTable, rows: Rows, members: Sequence[PackMember | None]
    ) -> tuple[Rows, torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Supervised tokens of each row; loss, hit, most likely token, margin at each model's supervised positions."""
        batch = self.cuts.collate(table, np.tile(rows, len(members)), self.device)
        states, output = self.states(batch, members)
        all_there = [self._bare if member is None else member for member in members]
        heads = heads_of(self.objective, all_there, batch.counts.reshape(len(members), -1).sum(1))
        asked = asked_of(self.objective, batch, heads=heads)
        betas = np.repeat([beta_of(member) for member in all_there], len(rows))
        asked = of_groups(asked, batch, betas, _references(table, rows, members))
        losses, found, margins = self.objective.score(states, asked, output)
        hits = found == batch.targets
        hits = hits.flatten(1).all(1) if hits.ndim > 1 else hits
        tokens = found if self.keeps_tokens or table.answers is not None else None
        return batch.counts[: len(rows)], losses, hits, tokens, margins

    @staticmethod
    def work(
        models: Sequence[Adapter | None], lengths: Rows, cuts: Cuts
    ) -> list[tuple[Rows, Rows, list[PackMember | None]]]:
        """Micro-batches as (model numbers, rows, members): every model sees every row once."""
        at_once = min(CAPACITY, max(1, cuts.max_tokens // max(1, int(lengths.max(initial=1)))))
        members = [None if m is None else PackMember(m, trainable=False) for m in models]
        pieces = []
        for start in range(0, len(models), at_once):
            chosen = np.arange(start, min(len(models), start + at_once))
            share = replace(
                cuts,
                max_tokens=max(1, cuts.max_tokens // len(chosen)),
                launch_tokens=max(1, cuts.launch_tokens // len(chosen)),
            )
            pieces += [(chosen, rows, [members[i] for i in chosen]) for rows in share.pieces(lengths)]
        return pieces

    def states(
        self,
        batch: MicroBatch,
        members: Sequence[PackMember | None],
        *,
        shares: Sequence[int] | None = None,
        **inputs: Any,
    ) -> tuple[torch.Tensor, Any]:
        """States [positions, D] at the batch's positions, and the decoder's output.

        The batch holds each member's rows, one member after the other: `shares` of them, or the same number of each.
        """
        rows = [len(batch.counts) // len(members)] * len(members) if shares is None else shares
        edges = batch.starts[np.cumsum([0, *rows])].tolist()
        segments = [
            Segment(member=member, start=start, stop=stop, dropout=False)
            for member, (start, stop) in zip(members, pairwise(edges), strict=True)
            if member is not None
        ]
        self.packed.assign([member for member in members if member is not None])
        with (
            self.body.running(None if inputs else self.body.rows(batch), bare=not segments) as places,
            self.packed.route(segments, batch.tokens.numel()),
        ):
            hidden, output = self.objective.hidden(batch.tokens, **places, **inputs)
        return hidden.reshape(-1, hidden.shape[-1])[batch.positions], output


def _references(
    table: TokenTable, rows: Rows, members: Sequence[PackMember | None]
) -> npt.NDArray[np.float64] | None:
    """[members x rows] log-likelihoods under the base model, NaN for the base itself; None where the table has none."""
    if table.row_references is None:
        return np.full(len(rows) * len(members), np.nan) if all(each is None for each in members) else None
    known = table.row_references[rows]
    return np.concatenate([np.full(len(rows), np.nan) if each is None else known for each in members])
