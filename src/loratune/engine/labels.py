"""Likelihood of every label after every prompt, all labels of a row in one forward pass.

The labels' tokens form a tree (labels with the same beginning share it) that hangs on the prompt; a block
mask lets a node see the prompt and its ancestors only. Models that do not honour such a mask are found by
a comparison on a few rows and get one plain row per label instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from loratune.data.batches import MicroBatch
from loratune.data.table import TokenTable
from loratune.engine.evaluate import Evaluator
from loratune.engine.resources import is_memory_error
from loratune.lora.layout import Adapter
from loratune.lora.segments import Passenger

LabelTokens = tuple[npt.NDArray[np.int32], ...]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_NODES_PER_TREE = 256
_CHECKED_ROWS = 4
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_HALF_TOLERANCE = 0.05


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LabelTree:
    """The tokens of some labels as a tree.

    State 0 is that of the prompt's last token, state i + 1 that of the i-th fed token.
    """

    fed: Ints
    """[fed] tokens that something follows; they are given to the model after the prompt."""
    depth: Ints
    """[fed] 0 for a label's first token."""
    sees: npt.NDArray[np.bool_]
    """[fed, fed] whether the row's token sees the column's: itself and its ancestors."""
    owners: Ints
    """[nodes] the state after which each node's token is predicted, ascending."""
    tokens: Ints
    """[nodes] the token of each node."""
    paths: tuple[Ints, ...]
    """Per label, its nodes."""

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
        sees = np.array([[a[: len(b)] == b for b in inner] for a in inner], np.bool_)
        return cls(
            fed=np.array([prefix[-1] for prefix in inner], np.int64),
            depth=np.array([len(prefix) - 1 for prefix in inner], np.int64),
            sees=sees.reshape(len(inner), len(inner)),
            owners=np.array([state[prefix[:-1]] for prefix in ordered], np.int64),
            tokens=np.array([prefix[-1] for prefix in ordered], np.int64),
            paths=tuple(
                np.array([place[tuple(int(t) for t in label[:end])] for end in range(1, len(label) + 1)])
                for label in labels
            ),
        )


class LabelScorer:
    """Scores the labels of one dataset with an `Evaluator`."""

    def __init__(self, evaluator: Evaluator, labels: LabelTokens) -> None:
        self._evaluator = evaluator
        self._labels = labels
        self._trees = [LabelTree.build(part) for part in _groups(labels)]
        self._trees_work: bool | None = None

    @torch.no_grad()
    def predict(self, models: Sequence[Adapter | None], table: TokenTable) -> list[Ints]:
        """[rows] the most likely label of each row, per model."""
        if self._trees_work is None:
            self._trees_work = self._compare(table)
        score = self.by_trees if self._trees_work else self.by_rows
        return [likelihood.argmax(1) for likelihood in score(models, table)]

    def _compare(self, table: TokenTable) -> bool:
        """Whether trees give what plain rows give, on the longest rows (they reach past sliding windows)."""
        rows = table.take(np.argsort(-table.lengths, kind="stable")[:_CHECKED_ROWS])
        expected = self.by_rows([None], rows)[0]
        try:
            found = self.by_trees([None], rows)[0]
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            if is_memory_error(error):
                raise
            return False  # the architecture refuses a mask of four dimensions or positions of its own
        tolerance = _TOLERANCE.get(self._evaluator.head.model.dtype, _HALF_TOLERANCE)
        return bool(np.all(np.abs(found - expected) <= tolerance * np.maximum(1.0, np.abs(expected))))

    def by_rows(self, models: Sequence[Adapter | None], table: TokenTable) -> list[Floats]:
        """[rows, labels] log-likelihood in nats, from one plain row per label."""
        pairs = [(prompt, label) for prompt in _prompts(table) for label in self._labels]
        rows = TokenTable(
            tokens=np.concatenate([part for pair in pairs for part in pair]),
            supervised=np.repeat(
                np.tile([False, True], len(pairs)), [len(part) for pair in pairs for part in pair]
            ),
            offsets=np.cumsum([0, *(len(prompt) + len(label) for prompt, label in pairs)]),
        )
        results = self._evaluator.evaluate(models, rows)
        return [-result.example_nll.reshape(len(table), len(self._labels)) for result in results]

    def by_trees(self, models: Sequence[Adapter | None], table: TokenTable) -> list[Floats]:
        """[rows, labels] log-likelihood in nats, from one row with all labels (or a part of many)."""
        prompts = _prompts(table)
        columns: list[Floats] = []
        for tree in self._trees:
            found = np.zeros((len(models), len(table), len(tree.paths)))
            lengths = np.array([len(prompt) + len(tree.fed) for prompt in prompts])
            cuts = replace(self._evaluator.cuts, flat=False)  # a tree needs a mask
            for chosen, rows, passengers in self._evaluator.work(models, lengths, cuts):
                found[np.ix_(chosen, rows)] = self._score(tree, [prompts[i] for i in rows], passengers)
            columns.append(found)
        return list(np.concatenate(columns, axis=2))

    def _score(
        self,
        tree: LabelTree,
        prompts: Sequence[npt.NDArray[np.int32]],
        passengers: Sequence[Passenger | None],
    ) -> Floats:
        """[models, prompts, labels of the tree] of one micro-batch."""
        batch, mask, positions = self._arrange(tree, [*prompts] * len(passengers))
        states, output = self._evaluator.states(
            batch, passengers, attention_mask=mask, position_ids=positions
        )
        copies = len(passengers) * len(prompts)
        device = states.device
        stride = torch.arange(copies, device=device).unsqueeze(1)
        owners = torch.from_numpy(tree.owners).to(device) + stride * (len(tree.fed) + 1)
        tokens = torch.from_numpy(tree.tokens).to(device).repeat(copies)
        likelihood = self._evaluator.head.likelihood(states, owners.flatten(), tokens, output)
        nodes = likelihood.double().cpu().numpy().reshape(len(passengers), len(prompts), -1)
        return np.stack([nodes[:, :, path].sum(-1) for path in tree.paths], -1)

    def _arrange(
        self, tree: LabelTree, prompts: Sequence[npt.NDArray[np.int32]]
    ) -> tuple[MicroBatch, torch.Tensor, torch.Tensor]:
        """Rows [prompt, padding to P, tree], the additive mask [rows, 1, T, T] and positions [rows, T]."""
        lengths = np.array([len(prompt) for prompt in prompts])
        longest, fed = int(lengths.max()), len(tree.fed)
        width = longest + fed
        tokens = np.zeros((len(prompts), width), np.int64)
        visible = np.zeros((len(prompts), width, width), np.bool_)
        positions = np.zeros((len(prompts), width), np.int64)
        visible[:, :longest, :longest] = np.tri(longest, dtype=np.bool_)
        visible[:, longest:, :longest] = (np.arange(longest) < lengths[:, None])[:, None]
        visible[:, longest:, longest:] = tree.sees
        for i, prompt in enumerate(prompts):
            tokens[i, : len(prompt)] = prompt
            tokens[i, longest:] = tree.fed
            positions[i, :longest] = np.arange(longest)
            positions[i, longest:] = len(prompt) + tree.depth
        states = np.concatenate(
            [(lengths - 1)[:, None], np.broadcast_to(np.arange(longest, width), (len(prompts), fed))], 1
        )
        states = states + np.arange(len(prompts))[:, None] * width
        evaluator = self._evaluator
        dtype = evaluator.head.model.dtype
        hidden = torch.from_numpy(~visible).to(evaluator.device)
        mask = torch.zeros(hidden.shape, dtype=dtype, device=evaluator.device)
        mask.masked_fill_(hidden, torch.finfo(dtype).min)
        batch = MicroBatch(
            tokens=torch.from_numpy(tokens).to(evaluator.device),
            positions=torch.from_numpy(states.reshape(-1)).to(evaluator.device),
            targets=torch.zeros(0, dtype=torch.int64, device=evaluator.device),
            counts=np.full(len(prompts), fed + 1),
            starts=np.arange(len(prompts) + 1) * width,
            longest=width,
            flat=False,
        )
        return batch, mask.unsqueeze(1), torch.from_numpy(positions).to(evaluator.device)


def _groups(labels: LabelTokens) -> list[LabelTokens]:
    """Neighbouring labels whose trees stay below the limit of tokens."""
    groups: list[list[npt.NDArray[np.int32]]] = [[]]
    tokens = 0
    for label in labels:
        if groups[-1] and tokens + len(label) > _NODES_PER_TREE:
            groups.append([])
            tokens = 0
        groups[-1].append(label)
        tokens += len(label)
    return [tuple(group) for group in groups]


def _prompts(table: TokenTable) -> list[npt.NDArray[np.int32]]:
    """The tokens before each row's first supervised one."""
    pairs = (table.row(i) for i in range(len(table)))
    return [tokens[: int(np.argmax(supervised))] for tokens, supervised in pairs]
