"""Greedy decoding with a cache of keys and values: rows of several models at once, each as if alone.

Rows are padded on the left and sorted by length; the same rows of all models stand in one batch, those of one model
one after another, as in an evaluation. Rows that have ended leave the batch. Knows no metric and no text.
"""

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from loratune.data.table import TokenTable
from loratune.engine.evaluate import Evaluator
from loratune.engine.label_search import language_model_of
from loratune.engine.portions import Cuts
from loratune.errors import ModelError
from loratune.lora.layout import Adapter
from loratune.lora.packed import Plan
from loratune.lora.segments import PackMember, Segment
from loratune.model.architecture import is_recurrent

Tokens = npt.NDArray[np.int32]
Ints = npt.NDArray[np.int64]

_WINDOW = 16
"""Steps between two checks for rows that have ended; in between the device never waits for the host."""
_CHECKED_LENGTHS = (13, 6)
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_HALF_TOLERANCE = 0.1


@dataclass(slots=True, eq=False)
class _Batch:
    """Rows on their way; B of them, T tokens so far, padding included."""

    members: Sequence[PackMember | None]
    owners: Ints
    """[B] whose each row is, ascending."""
    mask: torch.Tensor
    """[B, T] 1 where a token is, 0 where there is padding."""
    cache: Any
    token: torch.Tensor
    """[B] the last one, which is not in the cache yet."""

    def keep(self, rows: Ints) -> None:
        """Only these continue."""
        chosen = torch.from_numpy(rows).to(self.token.device)
        self.owners = self.owners[rows]
        self.mask, self.token = self.mask[chosen], self.token[chosen]
        self.cache.batch_select_indices(chosen)


class GreedyDecoder:
    """Decodes with what an `Evaluator` runs on; its hooks must be in place."""

    def __init__(self, evaluator: Evaluator, ends: Iterable[int], *, cached_tokens: int) -> None:
        """`ends`: tokens after which a row has ended. `cached_tokens`: of all rows of a batch, padding included."""
        self._evaluator = evaluator
        self._language_model = language_model_of(evaluator)
        self._device = evaluator.device
        self._ends = np.array(sorted(ends), np.int64)
        self.cuts = Cuts(max_tokens=cached_tokens, launch_tokens=cached_tokens)
        self._model = evaluator.body.model
        decoder = self._model.get_decoder()
        self._takes_places = "position_ids" in inspect.signature(decoder.forward).parameters
        self._checked = False

    @torch.no_grad()
    def decode(
        self, models: Sequence[Adapter | None], prompts: Sequence[Tokens], limits: Ints
    ) -> list[list[Tokens]]:
        """What each model (None: the bare base) writes after each prompt [models][prompts], without the end token.

        `limits` [prompts]: new tokens at most. Raises `ModelError` where the model cannot decode such a batch.
        """
        self._check()
        found: list[list[Tokens]] = [[np.zeros(0, np.int32)] * len(prompts) for _ in models]
        lengths = np.array([len(prompt) for prompt in prompts]) + limits
        for chosen, rows, members in Evaluator.work(models, lengths, self.cuts):
            written = self._decode(members, [prompts[i] for i in rows], limits[rows])
            for place, tokens in enumerate(written):
                found[chosen[place // len(rows)]][rows[place % len(rows)]] = tokens
        return found

    def _decode(
        self, members: Sequence[PackMember | None], prompts: Sequence[Tokens], limits: Ints
    ) -> list[Tokens]:
        """Generated tokens of one batch: the first member's prompts, then the second's, and so on."""
        self._evaluator.packed.assign([member for member in members if member is not None])
        batch = self._begin(members, prompts)
        most = np.tile(limits, len(members))
        written = np.zeros((len(most), int(most.max())), np.int64)
        ended = np.zeros(len(most), np.bool_)
        alive, window, plan = np.arange(len(most)), [batch.token], self._plan(batch, 1)
        for count in range(1, written.shape[1] + 1):
            if len(window) == _WINDOW or count == written.shape[1]:
                new = torch.stack(window, 1).cpu().numpy()
                written[alive, count - len(window) : count] = new
                ended[alive] |= np.isin(new, self._ends).any(1) | (most[alive] <= count)
                window = []
                if ended.all():
                    break
                if ended[alive].any():
                    going = np.flatnonzero(~ended[alive])
                    alive = alive[going]
                    batch.keep(going)
                    plan = self._plan(batch, 1)
            self._step(batch, plan)
            window.append(batch.token)
        return [self._cut(row[:limit]) for row, limit in zip(written, most, strict=True)]

    def _cut(self, row: Ints) -> Tokens:
        """Up to the first end token."""
        ends = np.flatnonzero(np.isin(row, self._ends))
        return row[: int(ends[0]) if len(ends) else None].astype(np.int32)

    def _begin(
        self, members: Sequence[PackMember | None], prompts: Sequence[Tokens], at_once: int | None = None
    ) -> _Batch:
        """The prompts in the cache, in the pieces that an evaluation would need, and the first tokens after them.

        `at_once`: rows of a piece, if not so.
        """
        longest = max(len(prompt) for prompt in prompts)
        tokens = np.zeros((len(prompts), longest), np.int64)
        mask = np.zeros((len(prompts), longest), np.int64)
        for i, prompt in enumerate(prompts):
            tokens[i, longest - len(prompt) :] = prompt
            mask[i, longest - len(prompt) :] = 1
        owners = np.repeat(np.arange(len(members)), len(prompts))
        rows = np.tile(np.arange(len(prompts)), len(members))
        limit = min(self._evaluator.cuts.max_tokens, self.cuts.max_tokens)
        at_once = max(1, limit // longest) if at_once is None else at_once
        parts = []
        for start in range(0, len(rows), at_once):
            piece = slice(start, start + at_once)
            part = _Batch(
                members=members,
                owners=owners[piece],
                mask=torch.from_numpy(mask[rows[piece]]).to(self._device),
                cache=DynamicCache(config=self._model.config.get_text_config()),
                token=torch.empty(0),
            )
            given = torch.from_numpy(tokens[rows[piece]]).to(self._device)
            part.token = self._likeliest(part, given, self._plan(part, longest))
            parts.append(part)
        return _joined(parts)

    def _step(self, batch: _Batch, plan: Plan) -> None:
        """Put the last tokens into the cache, and find those after them."""
        batch.mask = torch.cat([batch.mask, batch.mask.new_ones(len(batch.mask), 1)], 1)
        batch.token = self._likeliest(batch, batch.token.unsqueeze(1), plan)

    def _likeliest(self, batch: _Batch, given: torch.Tensor, plan: Plan) -> torch.Tensor:
        """[B] the most likely token after `given` [B, t], the last t tokens of the mask."""
        states, output = self._states(batch, given, plan)
        return self._language_model.likeliest(states, output)

    def _states(self, batch: _Batch, given: torch.Tensor, plan: Plan) -> tuple[torch.Tensor, Any]:
        """States [B, D] of the last tokens, and the decoder's output."""
        inputs: dict[str, Any] = {"attention_mask": batch.mask, "past_key_values": batch.cache}
        if self._takes_places:
            places = batch.mask.cumsum(1).sub_(1).clamp_(min=0)
            inputs["position_ids"] = places[:, -given.shape[1] :]
        with self._evaluator.body.running(None), self._evaluator.packed.routed(plan):
            hidden, output = self._language_model.hidden(given, use_cache=True, **inputs)
        return hidden[:, -1], output

    def _plan(self, batch: _Batch, width: int) -> Plan:
        """Which model each token of the batch belongs to, `width` tokens a row."""
        edges = [0, *(np.flatnonzero(np.diff(batch.owners)) + 1).tolist(), len(batch.owners)]
        segments = [
            Segment(member=member, start=start * width, stop=stop * width)
            for start, stop in pairwise(edges)
            if (member := batch.members[batch.owners[start]]) is not None
        ]
        return self._evaluator.packed.plan(segments, len(batch.owners) * width)

    def _check(self) -> None:
        """Compare a state that was reached through the cache with one that was not: no flag of transformers says it."""
        if self._checked:
            return
        model = self._model
        if is_recurrent(model.config, type(model)):
            raise _cannot(model, "padding on the left passes through the state of its layers")
        size = model.config.get_text_config().vocab_size
        rows = [np.arange(length, dtype=np.int32) * 7 % size for length in _CHECKED_LENGTHS]
        table = TokenTable.from_rows([([*row, 0], [False] * len(row) + [True]) for row in rows])
        plain = self._evaluator.cuts.collate(table, range(len(rows)), self._device)
        expected = self._evaluator.states(plain, [None])[0]
        try:
            batch = self._begin([None], [row[:-1] for row in rows], at_once=1)
            batch.mask = torch.cat([batch.mask, batch.mask.new_ones(len(rows), 1)], 1)
            last = torch.tensor([[int(row[-1])] for row in rows], device=self._device)
            found = self._states(batch, last, self._plan(batch, 1))[0]
        except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
            raise _cannot(model, f"{type(error).__name__}: {error}") from error
        deviation = float((found.double() - expected.double()).norm() / expected.double().norm())
        if not deviation <= _TOLERANCE.get(model.dtype, _HALF_TOLERANCE):
            raise _cannot(model, f"its states deviate by {deviation:.2g}")
        self._checked = True


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> frozenset[int]:
    """Tokens that end a text: those of the model's generation settings, and the tokenizer's."""
    own = getattr(model.generation_config, "eos_token_id", None)
    found = {own} if isinstance(own, int) else set(own or ())
    if tokenizer is not None:
        found.add(tokenizer.eos_token_id)
    return frozenset(int(each) for each in found if each is not None)


def _joined(parts: Sequence[_Batch]) -> _Batch:
    """One batch of several whose rows are as long; a layer's keys of the parts go as soon as they are joined."""
    first = parts[0]
    if len(parts) == 1:
        return first
    for layers in zip(*(part.cache.layers for part in parts), strict=True):
        if layers[0].keys is None:  # one that reads another layer's
            continue
        layers[0].keys = torch.cat([layer.keys for layer in layers])
        layers[0].values = torch.cat([layer.values for layer in layers])
        for layer in layers[1:]:
            layer.keys = layer.values = None
    first.owners = np.concatenate([part.owners for part in parts])
    first.mask = torch.cat([part.mask for part in parts])
    first.token = torch.cat([part.token for part in parts])
    return first


def _cannot(model: Any, why: str) -> ModelError:
    return ModelError(
        f"a metric of generated text needs a model that decodes padded rows with a cache, and "
        f"{type(model).__name__} does not ({' '.join(why.split())[:120]}); choose another --metric, such as nll."
    )
