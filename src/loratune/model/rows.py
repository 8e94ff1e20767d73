"""Attention within the rows of a flat micro-batch: no padding, no mask, no token that sees another row.

A flat micro-batch holds its rows one after another in one line of tokens, [1, N], with positions that
begin again at every row. The attention runs within the rows' boundaries: by Triton kernels on GPUs in half
precision (`row_attention`), elsewhere rows of one length together. It is put in place through transformers'
attention interface. Knows nothing of adapters or trials.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from loratune.kernels.launch import kernel_path
from loratune.model.architecture import is_recurrent
from loratune.model.long_attention import PackedRows
from loratune.model.quiet import first_sentence

NAME = "loratune_rows"
_CHECKED = "loratune_rows_checked"
_CHECKED_LENGTHS = (5, 17, 3, 9)
_FEWEST_QUERIES = 64
"""Fewest queries of a row that attend within a window together."""
_SEEN = 1e-5
"""A row's states hardly change when other rows do: products of one shape round alike."""
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_HALF_TOLERANCE = 0.1
"""Random weights in half precision deviate by up to 0.03; wrong positions by 0.3 and more."""


class ByLength(NamedTuple):
    """The tokens of a line in another order: rows of one length together."""

    order: torch.Tensor
    """[N] token at each place of that order."""
    inverse: torch.Tensor
    """[N] place of each token."""
    groups: tuple[tuple[int, int], ...]
    """(rows, length), in that order."""

    @classmethod
    def of(cls, starts: npt.NDArray[np.int64], device: torch.device) -> "ByLength":
        """The layout of rows that begin at `starts` [rows + 1]."""
        lengths = np.diff(starts)
        by_length = np.argsort(lengths, kind="stable")
        order = np.concatenate([np.arange(starts[row], starts[row + 1]) for row in by_length])
        found, counts = np.unique(lengths, return_counts=True)
        groups = tuple((int(n), int(length)) for n, length in zip(counts, found, strict=True) if length)
        return cls(torch.from_numpy(order).to(device), torch.from_numpy(np.argsort(order)).to(device), groups)


Bounds = torch.Tensor | ByLength
"""Where the rows of a line lie: for each token [2, N] int32 where its row begins and ends, for the kernels of a GPU;
elsewhere an order of the tokens."""


def bounds_of(starts: npt.NDArray[np.int64], device: torch.device) -> Bounds:
    """The bounds of rows that begin at `starts` [rows + 1]."""
    if device.type != "cuda":
        return ByLength.of(starts, device)
    return table_of(starts).pin_memory().to(device, non_blocking=True)


def table_of(starts: npt.NDArray[np.int64]) -> torch.Tensor:
    """What the kernels read, of rows that begin at `starts` [rows + 1]."""
    ends = np.stack([starts[:-1], starts[1:]]).astype(np.int32)
    return torch.from_numpy(np.repeat(ends, np.diff(starts), axis=1))


_bounds: Bounds | None = None


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **other: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: [1, heads, N, D] in, [1, N, heads, D] out."""
    if softcap is not None or any(other.get(name) is not None for name in ("s_aux", "position_bias")):
        raise ValueError("row attention has neither soft caps nor sinks nor biases of positions")
    assert _bounds is not None, "row attention runs inside `flat`"
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    causal = _is_causal(module, other.get("is_causal"))
    if isinstance(_bounds, ByLength):
        return _by_length(query, key, value, scale, sliding_window, _bounds, causal), None
    if not causal:
        raise ValueError("no kernel for attention in both directions")
    if value.shape[-1] != query.shape[-1]:
        raise ValueError(f"values of {value.shape[-1]} features beside queries of {query.shape[-1]}")
    window = -1 if sliding_window is None else sliding_window - 1
    lines = (each[0].transpose(0, 1) for each in (query, key, value))
    return torch.ops.loratune.row_attention(*lines, scale, window)[0].unsqueeze(0), None


def _is_causal(module: nn.Module, given: bool | None) -> bool:
    """Whether attention is causal, decided as in transformers' own attention functions."""
    return bool(getattr(module, "is_causal", True) if given is None else given)


def _by_length(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    window: int | None,
    lines: ByLength,
    causal: bool,
) -> torch.Tensor:
    """Attention [1, N, heads, D] of rows of one length at a time; a `window` counts the token itself.

    In half precision CPUs compute it in float32: torch's backward pass in bfloat16 takes several times as long.
    """
    dtype = query.dtype
    if query.device.type == "cpu" and dtype in (torch.bfloat16, torch.float16):
        query, key, value = query.float(), key.float(), value.float()
    sizes = [rows * length for rows, length in lines.groups]
    parts = (torch.split(each[0].index_select(1, lines.order), sizes, 1) for each in (query, key, value))
    found = []
    for (rows, length), *own in zip(lines.groups, *parts, strict=True):
        q, k, v = (each.view(len(each), rows, length, -1).transpose(0, 1) for each in own)
        if window and length > window:
            out = _windowed(q, k, v, scale, window, causal)
        else:
            out = nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=causal, scale=scale, enable_gqa=True
            )
        found.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(found).index_select(0, lines.inverse).unsqueeze(0).to(dtype)


def _windowed(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, window: int, causal: bool
) -> torch.Tensor:
    """Attention [rows, heads, length, D] to those less than `window` away, in both directions or to the left.

    Some queries at a time with the keys that any of them sees: a mask of all would hold the square of the length.
    """
    length, step = query.shape[2], max(window, _FEWEST_QUERIES)
    places, found = torch.arange(length, device=query.device), []
    for begin in range(0, length, step):
        end = min(length, begin + step)
        seen = slice(max(0, begin - window + 1), end if causal else min(length, end + window - 1))
        distance = places[begin:end, None] - places[seen]
        mask = (distance >= 0) & (distance < window) if causal else distance.abs() < window
        part = nn.functional.scaled_dot_product_attention(
            query[:, :, begin:end],
            key[:, :, seen],
            value[:, :, seen],
            attn_mask=mask,
            scale=scale,
            enable_gqa=True,
        )
        found.append(part)
    return torch.cat(found, 2)


def _window_of_mask(*, local_size: int | None = None, **_: Any) -> torch.Tensor | None:
    """transformers' mask interface, for the check alone: [1, 1, 1, 1] the window instead of a mask; None for all."""
    return None if local_size is None else torch.full((1, 1, 1, 1), local_size)


def _attend_checked(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    sliding_window: int | None = None,
    **other: Any,
) -> tuple[torch.Tensor, None]:
    """`_attend`, which sees no mask: refuses a window that stands in the mask alone.

    In both directions a mask's window does not count the token itself.
    """
    itself = 0 if _is_causal(module, other.get("is_causal")) else 1
    if attention_mask is not None and int(attention_mask) + itself != sliding_window:
        raise ValueError(f"a mask with a window of {int(attention_mask)} tokens, attention without it")
    return _attend(module, query, key, value, None, sliding_window=sliding_window, **other)


AttentionInterface.register(NAME, _attend)
AttentionInterface.register(_CHECKED, _attend_checked)
AttentionMaskInterface.register(_CHECKED, _window_of_mask)


@contextmanager
def flat(
    model: PreTrainedModel, bounds: Bounds, name: str = NAME, line: PackedRows | None = None
) -> Iterator[None]:
    """Forward and backward passes in this block are of one flat micro-batch; `line`: its rows, where the host knows."""
    global _bounds
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = name
    _bounds = bounds
    if isinstance(bounds, torch.Tensor):
        from loratune.model import row_attention

        row_attention.set_bounds(bounds, line)
    try:
        yield
    finally:
        config._attn_implementation = before
        _bounds = None


class FlatPath(NamedTuple):
    """Whether a model takes flat micro-batches, and why (not)."""

    flat: bool
    reason: str
    first_position: int = 0
    """Position of a row's first token: RoBERTa's rows begin after the number of its padding."""


def body_of(model: PreTrainedModel) -> nn.Module:
    """What turns tokens into hidden states: all but the head."""
    head = model.get_output_embeddings()
    body: nn.Module = model.base_model if head is None else model.get_decoder()
    return body


@torch.no_grad()
def sees_ahead(model: PreTrainedModel) -> bool:
    """Whether a token sees those after it, so that padding must be masked: tried, since no flag says it.

    Causal language models do not.
    """
    if model.get_output_embeddings() is not None:
        return False
    device = next(model.parameters()).device
    rows = _plain_tokens(model, torch.arange(2, 8, device=device).repeat(2, 1))
    rows[1, -1] = _plain_tokens(model, rows[1, -1] + 1)
    states = states_of(model, rows, attention_mask=torch.ones_like(rows))[:, 0]
    return bool(_deviation(states[1], states[0]) > _SEEN)


def states_of(model: PreTrainedModel, tokens: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
    """Last hidden states [rows, T, D]; encoders know no cache."""
    body = body_of(model)
    cache = {"use_cache": False} if "use_cache" in signature(body.forward).parameters else {}
    states: torch.Tensor = body(input_ids=tokens, **cache, **inputs).last_hidden_state
    return states


@torch.no_grad()
def flat_path(model: PreTrainedModel, *, longest: int) -> FlatPath:
    """Compare flat with padded hidden states on a few random rows: no flag of transformers says it.

    One of them reaches past the model's attention window where rows of `longest` tokens do.
    """
    parameter = next(each for each in model.parameters() if each.is_floating_point())
    if parameter.device.type == "cuda" and parameter.dtype not in (torch.bfloat16, torch.float16):
        return FlatPath(False, f"no kernel for {str(parameter.dtype).removeprefix('torch.')}")
    if (
        parameter.device.type == "cuda"
        and not (kernels := kernel_path(parameter.device, parameter.dtype)).triton
    ):
        return FlatPath(False, kernels.reason)
    config = model.config.get_text_config()
    if is_recurrent(model.config, type(model)):
        return FlatPath(False, "some layers pass a state from each token to the next, whatever row it is of")
    windows = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    reached = [window + 9 for window in windows if isinstance(window, int) and 0 < window < longest]
    lengths = [*_CHECKED_LENGTHS, *reached]
    rows = [_plain_tokens(model, torch.arange(n, device=parameter.device) * 7) for n in lengths]
    try:
        expected = _padded_states(model, rows)
        for first in _first_positions(model):
            path = _compared(model, rows, expected, first)
            if path.flat:
                break
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of transformers, torch or Triton; the padded path will say more
        return FlatPath(False, f"the architecture refuses it ({first_sentence(error)[:80]})")
    return path


def _compared(
    model: PreTrainedModel, rows: Sequence[torch.Tensor], expected: torch.Tensor, first: int
) -> FlatPath:
    """Flat rows that begin at position `first` against their `expected` states [N, D]."""
    others = [rows[0], *(_plain_tokens(model, row + 1) for row in rows[1:])]
    found, again = (_flat_states(model, line, first) for line in (rows, others))
    seen = _deviation(again[: len(rows[0])], found[: len(rows[0])])
    if not seen <= _SEEN:
        return FlatPath(False, f"rows see each other there (deviation {seen:.2g})")
    deviation = _deviation(found, expected)
    if not deviation <= _TOLERANCE.get(found.dtype, _HALF_TOLERANCE):
        return FlatPath(False, f"differs from padded rows (deviation {deviation:.2g})")
    attention = "Triton kernels" if found.device.type == "cuda" else "PyTorch, rows of one length together"
    reason = f"attention by {attention}; agrees with padded rows to {deviation:.1g}"
    return FlatPath(True, reason, first)


def _first_positions(model: PreTrainedModel) -> list[int]:
    """Where rows may begin: at 0, or where positions are counted from the padding's number on."""
    padding = {getattr(module, "padding_idx", None) for module in model.modules()}
    return [0, *sorted(number + 1 for number in padding if isinstance(number, int) and number > 0)]


def _plain_tokens(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Tokens as random text has them: in the vocabulary, and none that stands for padding."""
    config = model.config.get_text_config()
    tokens = tokens % config.vocab_size
    padding = getattr(config, "pad_token_id", None)
    return (
        tokens
        if padding is None
        else tokens.masked_fill(tokens == padding, (padding + 1) % config.vocab_size)
    )


def _padded_states(model: PreTrainedModel, rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Last hidden states [N, D] of rows in a rectangle, one after another."""
    lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
    padded = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    real = torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]
    masked = {"attention_mask": real.long()} if sees_ahead(model) else {}
    return states_of(model, padded, **masked)[real]


def _flat_states(model: PreTrainedModel, rows: Sequence[torch.Tensor], first: int) -> torch.Tensor:
    """Last hidden states [N, D] of rows in one line, whose positions begin at `first`."""
    device = rows[0].device
    places = first + torch.cat([torch.arange(len(row), device=device) for row in rows]).unsqueeze(0)
    ends = np.cumsum([0, *(len(row) for row in rows)])
    tokens = torch.cat(list(rows)).unsqueeze(0)
    with flat(model, bounds_of(ends, device), _CHECKED):
        return states_of(model, tokens, position_ids=places)[0]


def _deviation(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference relative to that of `expected`."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())
