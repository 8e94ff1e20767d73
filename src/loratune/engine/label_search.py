"""The most likely of very many labels, without scoring them all.

The labels' tokens form a trie. A label is at most as likely as its beginning, so beginnings are looked at in the order
of their likelihood, and those that fall below the best whole label are left alone. The answer is exact unless the model
finds hundreds of beginnings likelier than its best label, as an untrained one may: then the search ends at a limit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from loratune.data.table import TokenTable
from loratune.engine.branches import Branches, Ints, arrange
from loratune.engine.evaluate import Evaluator
from loratune.engine.portions import Cuts
from loratune.errors import ModelError
from loratune.lora.layout import Adapter
from loratune.lora.segments import PackMember
from loratune.objectives.objective import LanguageModel

FIRST_ROUND = 64
"""Beginnings that a row looks at in its first forward pass, about; twice as many in every further one."""
MOST_NODES = 128
"""Beginnings of labels that are looked at for one row, about."""
_FIRST_PATHS, _MOST_PATHS = 4, 64
"""The same where every path needs a row of its own."""
_ROUNDS = 4
_AGAIN = 7.0
"""Tokens fed for each of `MOST_NODES`, those on the way there, padding and a last round beyond the limit included;
measured with an untrained base on 3,000 labels that end in digits (docs/log.md)."""
_ROOT = 0


def searched_tokens(rows: int, prompts: int) -> float:
    """Tokens that a search for the labels of rows takes at most, about; `prompts`: tokens of their prompts."""
    return _ROUNDS * prompts + rows * _AGAIN * MOST_NODES


class LabelTrie:
    """All labels' tokens; node 0 is the prompt's end, a node is a beginning of labels."""

    def __init__(self, labels: Sequence[npt.NDArray[np.int32]]) -> None:
        self.token, self.parent, self.label = [-1], [-1], [-1]
        places: list[dict[int, int]] = [{}]
        for number, label in enumerate(labels):
            node = _ROOT
            for token in label.tolist():
                following = places[node].get(token)
                if following is None:
                    following = places[node][token] = len(self.token)
                    self.token.append(token)
                    self.parent.append(node)
                    self.label.append(-1)
                    places.append({})
                node = following
            if self.label[node] < 0:
                self.label[node] = number
        self.children = [np.array(list(each.values()), np.int64) for each in places]
        """The nodes that follow each node."""
        self.size = [int(bool(len(each))) for each in self.children]
        """How many nodes at or below each node are followed by others."""
        for node in range(len(self.token) - 1, _ROOT, -1):
            self.size[self.parent[node]] += self.size[node]
        self.tokens = np.array(self.token, np.int64)
        self.labels = np.array(self.label, np.int64)
        self.inner = np.array([len(each) > 0 for each in self.children])

    @property
    def fed(self) -> int:
        """Tokens that something follows: what is given to the model to score every label."""
        return self.size[_ROOT] - 1

    @property
    def depth(self) -> int:
        """Tokens of the longest label."""
        depths = [0] * len(self.token)
        for node in range(1, len(self.token)):
            depths[node] = depths[self.parent[node]] + 1
        return max(depths)

    def below(self, node: int) -> Iterator[int]:
        """The node and all inner nodes below it, parents first."""
        yield node
        for child in self.children[node].tolist():
            if self.inner[child]:
                yield from self.below(child)

    def path(self, node: int) -> list[int]:
        """The nodes from the first token to this one; none for the root."""
        found = []
        while node != _ROOT:
            found.append(node)
            node = self.parent[node]
        return found[::-1]


@dataclass(kw_only=True, slots=True)
class _Row:
    """How far the search has come for one prompt."""

    prompt: npt.NDArray[np.int32]
    likelihood: dict[int, float] = field(default_factory=lambda: {_ROOT: 0.0})
    """Log-likelihood of beginnings whose continuations are or will be looked at, nats."""
    open: Ints = field(default_factory=lambda: np.array([_ROOT]))
    """Beginnings not looked at."""
    open_likelihood: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))
    best: float = -inf
    label: int = -1
    seen: int = 0
    """Beginnings looked at."""

    def choose(self, trie: LabelTrie, first: int, most: int, *, whole: bool) -> list[int]:
        """Beginnings to look at next, the likeliest first: about `first` at first, then the number seen so far.

        With `whole` also what follows one, parents first, where all of it fits in. None where the search is over,
        which it is after `most`, if a label is known by then.
        """
        if self.seen >= most and self.label >= 0:
            return []
        nodes = max(first, self.seen)
        hopeful = self.open_likelihood > self.best
        self.open, self.open_likelihood = self.open[hopeful], self.open_likelihood[hopeful]
        order = np.argsort(-self.open_likelihood, kind="stable")
        chosen: list[int] = []
        taken = 0
        for place in order.tolist():
            if len(chosen) >= nodes:
                break
            node = int(self.open[place])
            self.likelihood[node] = float(self.open_likelihood[place])
            fits = whole and len(chosen) + trie.size[node] <= nodes
            chosen += trie.below(node) if fits else [node]
            taken += 1
        self.open, self.open_likelihood = self.open[order[taken:]], self.open_likelihood[order[taken:]]
        self.seen += len(chosen)
        return chosen

    def learn(self, trie: LabelTrie, node: int, found: npt.NDArray[np.float64], looked_at: set[int]) -> None:
        """`found`: log-likelihood of each child of a node after it."""
        children = trie.children[node]
        total = self.likelihood[node] + found
        ends = trie.labels[children]
        whole = np.flatnonzero(ends >= 0)
        if len(whole):
            top = whole[np.lexsort((ends[whole], -total[whole]))[0]]
            if (-total[top], ends[top]) < (-self.best, self.label):
                self.best, self.label = float(total[top]), int(ends[top])
        inner = trie.inner[children]
        among = np.array([child in looked_at for child in children.tolist()], np.bool_)
        for child, likelihood in zip(
            children[inner & among].tolist(), total[inner & among].tolist(), strict=True
        ):
            self.likelihood[child] = likelihood
        later = inner & ~among & (total > self.best)
        self.open = np.concatenate([self.open, children[later]])
        self.open_likelihood = np.concatenate([self.open_likelihood, total[later]])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Request:
    """What one row of a micro-batch holds: a prompt and nodes, those to look at among them."""

    row: _Row
    fed: list[int]
    looked_at: list[int]


def language_model_of(evaluator: Evaluator) -> LanguageModel:
    """What scores tokens for an evaluator; raises `ModelError` where its objective has no such thing."""
    if (found := evaluator.objective.language_model) is None:
        raise ModelError(
            f"labels are scored by a language model, which {type(evaluator.objective).__name__} is not; "
            "leave label_tokens out."
        )
    return found


class LabelSearch:
    """Finds the labels of one dataset with an `Evaluator`; `branching` where the model honours a mask of its own."""

    def __init__(self, evaluator: Evaluator, trie: LabelTrie, *, branching: bool) -> None:
        self._evaluator = evaluator
        self._language_model = language_model_of(evaluator)
        self._trie = trie
        self._branching = branching

    @torch.no_grad()
    def predict(
        self, models: Sequence[Adapter | None], prompts: Sequence[npt.NDArray[np.int32]]
    ) -> list[Ints]:
        """[prompts] the most likely label, per model."""
        return [self._search(model, prompts) for model in models]

    def _search(self, model: Adapter | None, prompts: Sequence[npt.NDArray[np.int32]]) -> Ints:
        member = None if model is None else PackMember(model, trainable=False)
        cuts = replace(self._evaluator.cuts, flat=self._evaluator.cuts.flat and not self._branching)
        rows = [_Row(prompt=prompt) for prompt in prompts]
        while requests := [request for row in rows for request in self._requests(row)]:
            lengths = np.array([len(each.row.prompt) + len(each.fed) for each in requests])
            for piece in cuts.pieces(lengths):
                self._look([requests[i] for i in piece], member, cuts)
        return np.array([row.label for row in rows], np.int64)

    def _requests(self, row: _Row) -> list[_Request]:
        trie = self._trie
        if not self._branching:
            chosen = row.choose(trie, _FIRST_PATHS, _MOST_PATHS, whole=False)
            return [_Request(row=row, fed=trie.path(node), looked_at=[node]) for node in chosen]
        chosen = row.choose(trie, FIRST_ROUND, MOST_NODES, whole=True)
        fed = sorted({each for node in chosen for each in trie.path(node)})  # parents have smaller numbers
        return [_Request(row=row, fed=fed, looked_at=sorted(chosen))] if chosen else []

    def _look(self, requests: Sequence[_Request], member: PackMember | None, cuts: Cuts) -> None:
        """One forward pass, and what every row learns from it."""
        states, output = self._states(requests, member, cuts)
        starts = np.cumsum([0, *(len(each.fed) + 1 for each in requests)])
        owners, tokens, counts = [], [], []
        for start, each in zip(starts, requests, strict=False):
            state = {_ROOT: int(start)} | {node: int(start) + 1 + i for i, node in enumerate(each.fed)}
            for node in each.looked_at:
                children = self._trie.children[node]
                owners.append(np.full(len(children), state[node]))
                tokens.append(self._trie.tokens[children])
                counts.append(len(children))
        device = states.device
        found = self._language_model.likelihood(
            states,
            torch.from_numpy(np.concatenate(owners)).to(device),
            torch.from_numpy(np.concatenate(tokens)).to(device),
            output,
        )
        pieces = iter(np.split(found.double().cpu().numpy(), np.cumsum(counts)[:-1]))
        for each in requests:
            looked_at = set(each.looked_at)
            for node in each.looked_at:
                each.row.learn(self._trie, node, next(pieces), looked_at)

    def _states(
        self, requests: Sequence[_Request], member: PackMember | None, cuts: Cuts
    ) -> tuple[torch.Tensor, Any]:
        """The states of each request's last prompt token and of every fed one."""
        evaluator, trie = self._evaluator, self._trie
        if not self._branching:
            rows = []
            for each in requests:
                tokens = [
                    *each.row.prompt.tolist(),
                    *trie.tokens[each.fed].tolist(),
                    0,
                ]  # the last is never read
                asked = len(each.fed) + 1
                rows.append((tokens, [False] * (len(tokens) - asked) + [True] * asked))
            batch = cuts.collate(TokenTable.from_rows(rows), np.arange(len(rows)), evaluator.device)
            return evaluator.states(batch, [member])
        trees = []
        for each in requests:
            place = {node: i for i, node in enumerate(each.fed)}
            parents = [place.get(trie.parent[node], -1) for node in each.fed]
            trees.append(Branches.of(trie.tokens[each.fed].tolist(), parents))
        batch, mask, positions = arrange(
            [each.row.prompt for each in requests],
            trees,
            device=evaluator.device,
            dtype=evaluator.body.model.dtype,
        )
        return evaluator.states(batch, [member], attention_mask=mask, position_ids=positions)
