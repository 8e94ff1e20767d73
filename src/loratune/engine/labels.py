"""The most likely label after every prompt: by the likelihood of all labels, in one forward pass for a row.

The labels' tokens form a tree (labels with the same beginning share it) that continues the prompt; a block
mask lets a node see the prompt and its ancestors only. Models that do not honour such a mask are found by
a comparison on a few rows and get one plain row per label instead. Where labels are very many the most likely
one is searched for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import log

import numpy as np
import numpy.typing as npt
import torch

from loratune.data.table import TokenTable
from loratune.engine.branches import Branches, Ints, arrange
from loratune.engine.evaluate import Evaluation, Evaluator
from loratune.engine.label_search import LabelSearch, LabelTrie, language_model_of, searched_tokens
from loratune.engine.memory import is_memory_error
from loratune.lora.layout import Adapter
from loratune.lora.segments import PackMember
from loratune.maths.sizes import CAPACITY
from loratune.values import PASSES_PER_LABELLING

LabelTokens = tuple[npt.NDArray[np.int32], ...]
Floats = npt.NDArray[np.float64]

_NODES_PER_TREE = 256
"""Tokens up to which all labels are scored at once; beyond, the most likely one is searched for."""
_CHECKED_ROWS = 4
_CHECKED_LABELS = 32
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_HALF_TOLERANCE = 0.05
_ROUNDING = 0.1
"""Nats by which rows of other lengths in a micro-batch never change a label's likelihood, in half precision either."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LabelTree:
    """The tokens of some labels as a tree.

    State 0 is that of the prompt's last token, state i + 1 that of the i-th fed token.
    """

    branches: Branches
    """The tokens that something follows; they are given to the model after the prompt."""
    owners: Ints
    """[nodes] the state after which each node's token is predicted, ascending."""
    tokens: Ints
    """[nodes] the token of each node."""
    paths: tuple[Ints, ...]
    """Nodes of each label."""

    @classmethod
    def build(cls, labels: Sequence[npt.NDArray[np.int32]]) -> "LabelTree":
        """A tree of the labels' tokens; labels may share beginnings, or be the beginning of another."""
        nodes: dict[tuple[int, ...], None] = {}
        for label in labels:
            for end in range(1, len(label) + 1):
                nodes.setdefault(tuple(int(token) for token in label[:end]))
        parents = {prefix[:-1] for prefix in nodes} - {()}
        inner = sorted(parents, key=lambda prefix: (len(prefix), prefix))
        state = {(): 0} | {prefix: i + 1 for i, prefix in enumerate(inner)}
        ordered = sorted(nodes, key=lambda prefix: state[prefix[:-1]])
        place = {prefix: i for i, prefix in enumerate(ordered)}
        return cls(
            branches=Branches.of(
                [prefix[-1] for prefix in inner], [state[prefix[:-1]] - 1 for prefix in inner]
            ),
            owners=np.array([state[prefix[:-1]] for prefix in ordered], np.int64),
            tokens=np.array([prefix[-1] for prefix in ordered], np.int64),
            paths=tuple(
                np.array([place[tuple(int(t) for t in label[:end])] for end in range(1, len(label) + 1)])
                for label in labels
            ),
        )


class LabelScorer:
    """Finds the labels of one dataset with an `Evaluator`."""

    def __init__(self, evaluator: Evaluator, labels: LabelTokens) -> None:
        self._evaluator = evaluator
        self._language_model = language_model_of(evaluator)
        self._labels = labels
        self._trie = LabelTrie(labels)
        ends = np.flatnonzero(self._trie.labels >= 0)
        self._apart = len(ends) == len(labels) and not self._trie.inner[ends].any()
        """Whether all labels differ and none begins another."""
        self._trees_work: bool | None = None

    @torch.no_grad()
    def predict(
        self,
        models: Sequence[Adapter | None],
        table: TokenTable,
        known: Sequence[Evaluation] | None = None,
    ) -> list[Ints]:
        """[rows] the most likely label of each row, per model.

        `known`: each model's evaluation on these rows. Where it finds a row's own label likelier than all others can
        be together, no label is scored.
        """
        if self._trees_work is None:
            self._trees_work = self._compare(table)
        asked = self._unsettled(models, table, known)
        own = np.zeros(len(table), np.int64) if table.row_labels is None else table.row_labels
        found = np.tile(own.astype(np.int64), (len(models), 1))
        if is_searched(self._trie.fed):
            search = LabelSearch(self._evaluator, self._trie, branching=self._trees_work)
            prompts = _prompts(table)
            for i, model in enumerate(models):
                rows = np.flatnonzero(asked[i])
                (found[i, rows],) = search.predict([model], [prompts[row] for row in rows])
            return list(found)
        score = self.by_trees if self._trees_work else self.by_rows
        for labels, rows, likelihood in zip(
            found, asked, score(models, table, self._labels, asked), strict=True
        ):
            labels[rows] = likelihood[rows].argmax(1)
        return list(found)

    def _unsettled(
        self, models: Sequence[Adapter | None], table: TokenTable, known: Sequence[Evaluation] | None
    ) -> npt.NDArray[np.bool_]:
        """[models, rows] whether the most likely label has to be looked for.

        If no label begins another, probabilities sum up to one at most, so one above a half has won.
        """
        if known is None or table.row_labels is None or not self._apart:
            return np.ones((len(models), len(table)), np.bool_)
        exact = np.array([self._is_label(table, i, label) for i, label in enumerate(table.row_labels)])
        likely = np.array([each.example_nll < log(2) - _ROUNDING for each in known])
        unsettled: npt.NDArray[np.bool_] = ~(likely & exact)
        return unsettled

    def _is_label(self, table: TokenTable, row: int, label: int) -> bool:
        """Whether what is learnt of a row is that label and nothing else."""
        tokens, learned = table.row(row)
        return label >= 0 and np.array_equal(tokens[learned], self._labels[label])

    def _compare(self, table: TokenTable) -> bool:
        """Whether trees give what plain rows give, for some labels after the longest prompts (they reach past
        sliding windows)."""
        rows = table.take(np.argsort(-table.lengths, kind="stable")[:_CHECKED_ROWS])
        labels = self._labels[:: -(-len(self._labels) // _CHECKED_LABELS)]
        expected = self.by_rows([None], rows, labels)[0]
        try:
            found = self.by_trees([None], rows, labels)[0]
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            if is_memory_error(error):
                raise
            return False  # the architecture refuses a mask of four dimensions or positions of its own
        tolerance = _TOLERANCE.get(self._evaluator.body.model.dtype, _HALF_TOLERANCE)
        return bool(np.all(np.abs(found - expected) <= tolerance * np.maximum(1.0, np.abs(expected))))

    def by_rows(
        self,
        models: Sequence[Adapter | None],
        table: TokenTable,
        labels: LabelTokens,
        asked: npt.NDArray[np.bool_] | None = None,
    ) -> list[Floats]:
        """[rows, labels] log-likelihood in nats, from one plain row per label; of rows not `asked` for 0."""
        if asked is not None:
            return [
                self._some_by_rows(model, table, labels, np.flatnonzero(rows))
                for model, rows in zip(models, asked, strict=True)
            ]
        pairs = [(prompt, label) for prompt in _prompts(table) for label in labels]
        rows = TokenTable(
            tokens=np.concatenate([part for pair in pairs for part in pair]),
            supervised=np.repeat(
                np.tile([False, True], len(pairs)), [len(part) for pair in pairs for part in pair]
            ),
            offsets=np.cumsum([0, *(len(prompt) + len(label) for prompt, label in pairs)]),
        )
        results = self._evaluator.evaluate(models, rows)
        return [-result.example_nll.reshape(len(table), len(labels)) for result in results]

    def _some_by_rows(
        self, model: Adapter | None, table: TokenTable, labels: LabelTokens, rows: Ints
    ) -> Floats:
        found = np.zeros((len(table), len(labels)))
        if len(rows):
            (found[rows],) = self.by_rows([model], table.take(rows), labels)
        return found

    def by_trees(
        self,
        models: Sequence[Adapter | None],
        table: TokenTable,
        labels: LabelTokens,
        asked: npt.NDArray[np.bool_] | None = None,
    ) -> list[Floats]:
        """[rows, labels] log-likelihood in nats, from one row with all labels; of rows not `asked` for 0."""
        prompts, tree = _prompts(table), LabelTree.build(labels)
        found = np.zeros((len(models), len(table), len(labels)))
        lengths = np.array([len(prompt) + len(tree.branches.fed) for prompt in prompts])
        wanted = np.ones(found.shape[:2], np.bool_) if asked is None else asked
        cuts = replace(self._evaluator.cuts, flat=False)  # a tree needs a mask
        members = [None if model is None else PackMember(model, trainable=False) for model in models]
        for start in range(0, len(models), CAPACITY):
            of, rows = np.nonzero(wanted[start : start + CAPACITY])
            for piece in cuts.pieces(lengths[rows]) if len(rows) else ():
                piece.sort()  # a model's rows one after another
                some, there = of[piece] + start, rows[piece]
                found[some, there] = self._score(
                    tree, [prompts[i] for i in there], [members[i] for i in some]
                )
        return list(found)

    def _score(
        self,
        tree: LabelTree,
        prompts: Sequence[npt.NDArray[np.int32]],
        members: Sequence[PackMember | None],
    ) -> Floats:
        """[prompts, labels of the tree] of one micro-batch, each prompt by its member, equal ones side by side."""
        batch, mask, positions = arrange(
            prompts,
            [tree.branches] * len(prompts),
            device=self._evaluator.device,
            dtype=self._evaluator.body.model.dtype,
        )
        runs = [list(run) for _, run in groupby(members, key=id)]
        states, output = self._evaluator.states(
            batch,
            [member for member, *_ in runs],
            shares=[len(run) for run in runs],
            attention_mask=mask,
            position_ids=positions,
        )
        device = states.device
        stride = torch.arange(len(prompts), device=device).unsqueeze(1)
        owners = torch.from_numpy(tree.owners).to(device) + stride * (len(tree.branches.fed) + 1)
        tokens = torch.from_numpy(tree.tokens).to(device).repeat(len(prompts))
        likelihood = self._language_model.likelihood(states, owners.flatten(), tokens, output)
        nodes = likelihood.double().cpu().numpy().reshape(len(prompts), -1)
        return np.stack([nodes[:, path].sum(-1) for path in tree.paths], -1)


def is_searched(fed: int) -> bool:
    """Whether `fed` tokens of labels are too many to be scored at once."""
    return fed > _NODES_PER_TREE


def labelling_passes(labels: LabelTokens, table: TokenTable) -> float:
    """What finding the labels of a table's rows takes, in passes over the rows; of very many labels, at most.

    Nothing where they are answers, which every evaluation gives.
    """
    if table.answers is not None:
        return 0.0
    if not is_searched(LabelTrie(labels).fed):
        return PASSES_PER_LABELLING
    prompts = int(table.lengths.sum() - table.supervised_counts.sum())
    return searched_tokens(len(table), prompts) / float(table.lengths.sum())


def _prompts(table: TokenTable) -> list[npt.NDArray[np.int32]]:
    """The tokens before each row's first supervised one."""
    pairs = (table.row(i) for i in range(len(table)))
    return [tokens[: int(np.argmax(supervised))] for tokens, supervised in pairs]
