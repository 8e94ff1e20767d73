"""Attention within the rows of a flat micro-batch: no padding, no mask, no token that sees another row.

A flat micro-batch holds its rows one behind the other in one line of tokens, [1, N], with positions that
begin again at every row. The attention runs over the rows' boundaries: variable-length flash attention on
GPUs in half precision, elsewhere rows of one length together. It is put in place through transformers'
attention interface. Knows nothing of adapters or trials.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

NAME = "loratune_rows"
_CHECKED_LENGTHS = (5, 17, 3, 9)
_SEEN = 1e-5
"""A row's states hardly move when other rows change: products of one shape round alike."""
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_HALF_TOLERANCE = 0.1
"""Random weights in half precision deviate by up to 0.03; wrong positions by 0.3 and more."""


class Bounds(NamedTuple):
    """Where the rows of a flat micro-batch begin and end."""

    starts: torch.Tensor
    """[rows + 1] int32 cumulative lengths, on the device."""
    longest: int
    """No row has more tokens."""
    by_length: "ByLength | None" = None
    """For attention without a kernel for rows of any length."""

    @classmethod
    def of(cls, starts: npt.NDArray[np.int64], device: torch.device, *, longest: int = 0) -> "Bounds":
        """Bounds of rows that begin at `starts` [rows + 1]; `longest` may round the longest length up."""
        line = torch.from_numpy(starts.astype(np.int32))
        if _has_flash(device):
            line = line.pin_memory().to(device, non_blocking=True)
            return cls(line, max(longest, int(np.diff(starts).max())))
        return cls(line.to(device), max(longest, int(np.diff(starts).max())), ByLength.of(starts, device))


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
        """Of rows that begin at `starts` [rows + 1]."""
        lengths = np.diff(starts)
        by_length = np.argsort(lengths, kind="stable")
        order = np.concatenate([np.arange(starts[row], starts[row + 1]) for row in by_length])
        found, counts = np.unique(lengths, return_counts=True)
        groups = tuple((int(n), int(length)) for n, length in zip(counts, found, strict=True) if length)
        return cls(torch.from_numpy(order).to(device), torch.from_numpy(np.argsort(order)).to(device), groups)


def _has_flash(device: torch.device) -> bool:
    return device.type == "cuda"


_bounds: Bounds | None = None


@torch.library.custom_op("loratune::row_attention", mutates_args=())
def row_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None, window: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention of query [N, heads, D] to key and value [N, groups, D] within the current rows.

    `window` is the number of tokens to the left that are seen, -1 for all. Returns the output and the
    log-sum-exp [heads, N].
    """
    assert _bounds is not None, "row attention runs inside `flat`"
    starts, longest = _bounds.starts, _bounds.longest
    out, logsumexp, *_ = torch.ops.aten._flash_attention_forward(
        query, key, value, starts, starts, longest, longest, 0.0, True, False,
        scale=scale, window_size_left=window, window_size_right=0 if window >= 0 else -1,
    )  # fmt: skip
    return out, logsumexp


@row_attention.register_fake
def _(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None, window: int
) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, heads, _ = query.shape
    return torch.empty_like(query), query.new_empty((heads, tokens), dtype=torch.float32)


@torch.library.custom_op("loratune::row_attention_backward", mutates_args=())
def row_attention_backward(
    grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, out: torch.Tensor,
    logsumexp: torch.Tensor, scale: float | None, window: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Gradients of query, key and value."""
    assert _bounds is not None, "row attention runs inside `flat`"
    starts, longest = _bounds.starts, _bounds.longest
    state = torch.zeros(2, dtype=torch.uint64, device=grad.device)  # of the dropout that there is not
    gradients: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = torch.ops.aten._flash_attention_backward(
        grad.contiguous(), query, key, value, out, logsumexp, starts, starts, longest, longest, 0.0, True,
        state, grad.new_empty(0), scale=scale, window_size_left=window, window_size_right=0 if window >= 0 else -1,
    )  # fmt: skip
    return gradients


@row_attention_backward.register_fake
def _(
    grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    query, key, value, ctx.scale, ctx.window = inputs
    ctx.save_for_backward(query, key, value, *output)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: torch.Tensor, *_: None) -> tuple[Any, ...]:
    gradients = torch.ops.loratune.row_attention_backward(grad, *ctx.saved_tensors, ctx.scale, ctx.window)
    return (*gradients, None, None)


row_attention.register_autograd(_backward, setup_context=_save)


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
    if softcap is not None or other.get("s_aux") is not None:
        raise ValueError("row attention has neither soft caps nor sinks")
    assert _bounds is not None, "row attention runs inside `flat`"
    if _bounds.by_length is not None:
        return _by_length(query, key, value, scaling, sliding_window, _bounds.by_length), None
    window = -1 if sliding_window is None else sliding_window - 1
    lines = (each[0].transpose(0, 1) for each in (query, key, value))
    return row_attention(*lines, scaling, window)[0].unsqueeze(0), None


def _by_length(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float | None,
    window: int | None,
    lines: ByLength,
) -> torch.Tensor:
    """Attention [1, N, heads, D] of rows of one length at a time.

    In half precision CPUs compute it in float32: torch's backward pass in bfloat16 takes several times as long.
    """
    dtype = query.dtype
    if query.device.type == "cpu" and dtype in (torch.bfloat16, torch.float16):
        query, key, value = query.float(), key.float(), value.float()
    sizes = [rows * length for rows, length in lines.groups]
    parts = (torch.split(each[0].index_select(1, lines.order), sizes, 1) for each in (query, key, value))
    found = []
    for (rows, length), *own in zip(lines.groups, *parts, strict=True):
        places = torch.arange(length, device=query.device)
        distance = places[:, None] - places
        mask = (distance >= 0) & (distance < window) if window is not None and length > window else None
        q, k, v = (each.view(len(each), rows, length, -1).transpose(0, 1) for each in own)
        out = nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
        )
        found.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(found).index_select(0, lines.inverse).unsqueeze(0).to(dtype)


AttentionInterface.register(NAME, _attend)


@contextmanager
def flat(model: PreTrainedModel, bounds: Bounds) -> Iterator[None]:
    """Forward and backward passes in this block are of one flat micro-batch."""
    global _bounds
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = NAME
    _bounds = bounds
    try:
        yield
    finally:
        config._attn_implementation = before
        _bounds = None


class FlatPath(NamedTuple):
    """Whether a model takes flat micro-batches, and why (not)."""

    flat: bool
    reason: str


@torch.no_grad()
def flat_path(model: PreTrainedModel, *, longest: int) -> FlatPath:
    """Compare flat with padded hidden states on a few random rows: no flag of transformers tells.

    One of them reaches past the model's attention window where rows of `longest` tokens do.
    """
    parameter = next(model.parameters())
    if parameter.device.type == "cuda" and parameter.dtype not in (torch.bfloat16, torch.float16):
        return FlatPath(False, f"{str(parameter.dtype).removeprefix('torch.')} has no flash attention")
    config = model.config.get_text_config()
    windows = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    reached = [window + 9 for window in windows if isinstance(window, int) and 0 < window < longest]
    lengths = [*_CHECKED_LENGTHS, *reached]
    rows = [torch.arange(n, device=parameter.device) * 7 % config.vocab_size for n in lengths]
    decoder = model.get_decoder()
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    states = decoder(input_ids=padded, use_cache=False).last_hidden_state
    expected = torch.cat([row[:length] for row, length in zip(states, lengths, strict=True)])
    others = [rows[0], *((row + 1) % config.vocab_size for row in rows[1:])]
    try:
        found, again = (_flat_states(decoder, model, line) for line in (rows, others))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        return FlatPath(False, f"the architecture refuses it ({str(error).splitlines()[0][:80]})")
    seen = _deviation(again[: len(rows[0])], found[: len(rows[0])])
    if not seen <= _SEEN:
        return FlatPath(False, f"rows see each other there (deviation {seen:.2g})")
    deviation = _deviation(found, expected)
    if not deviation <= _TOLERANCE.get(parameter.dtype, _HALF_TOLERANCE):
        return FlatPath(False, f"differs from padded rows (deviation {deviation:.2g})")
    return FlatPath(True, f"agrees with padded rows to {deviation:.1g}")


def _flat_states(decoder: nn.Module, model: PreTrainedModel, rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Last hidden states [N, D] of rows in one line."""
    device = rows[0].device
    places = torch.cat([torch.arange(len(row), device=device) for row in rows]).unsqueeze(0)
    ends = np.cumsum([0, *(len(row) for row in rows)])
    with flat(model, Bounds.of(ends, device)):
        output = decoder(input_ids=torch.cat(list(rows)).unsqueeze(0), position_ids=places, use_cache=False)
    return output.last_hidden_state[0]  # type: ignore[no-any-return]


def _deviation(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference relative to that of `expected`."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())
