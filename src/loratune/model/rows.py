"""Attention within the rows of a flat micro-batch: no padding, no mask, no token that sees another row.

A flat micro-batch holds its rows one behind the other in one line of tokens, [1, N], with positions that
begin again at every row. The attention runs within the rows' boundaries: by Triton kernels on GPUs in half
precision (`row_attention`), elsewhere rows of one length together. It is put in place through transformers'
attention interface. Knows nothing of adapters or trials.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from loratune.kernels.launch import kernel_path
from loratune.model.quiet import first_sentence

NAME = "loratune_rows"
_CHECKED = "loratune_rows_checked"
_CHECKED_LENGTHS = (5, 17, 3, 9)
_SEEN = 1e-5
"""A row's states hardly move when other rows change: products of one shape round alike."""
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
        """Of rows that begin at `starts` [rows + 1]."""
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
    """Of rows that begin at `starts` [rows + 1]."""
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
    if softcap is not None or other.get("s_aux") is not None:
        raise ValueError("row attention has neither soft caps nor sinks")
    assert _bounds is not None, "row attention runs inside `flat`"
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if isinstance(_bounds, ByLength):
        return _by_length(query, key, value, scale, sliding_window, _bounds), None
    if value.shape[-1] != query.shape[-1]:
        raise ValueError(f"values of {value.shape[-1]} features beside queries of {query.shape[-1]}")
    window = -1 if sliding_window is None else sliding_window - 1
    lines = (each[0].transpose(0, 1) for each in (query, key, value))
    return torch.ops.loratune.row_attention(*lines, scale, window)[0].unsqueeze(0), None


def _by_length(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
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
    """`_attend`, which sees no mask: refuses a window that stands in the mask alone."""
    if attention_mask is not None and int(attention_mask) != sliding_window:
        raise ValueError(f"a window of {int(attention_mask)} tokens that attention is not told")
    return _attend(module, query, key, value, None, sliding_window=sliding_window, **other)


AttentionInterface.register(NAME, _attend)
AttentionInterface.register(_CHECKED, _attend_checked)
AttentionMaskInterface.register(_CHECKED, _window_of_mask)


@contextmanager
def flat(model: PreTrainedModel, bounds: Bounds, name: str = NAME) -> Iterator[None]:
    """Forward and backward passes in this block are of one flat micro-batch."""
    global _bounds
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = name
    _bounds = bounds
    if isinstance(bounds, torch.Tensor):
        from loratune.model import row_attention

        row_attention.set_bounds(bounds)
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
    windows = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    reached = [window + 9 for window in windows if isinstance(window, int) and 0 < window < longest]
    lengths = [*_CHECKED_LENGTHS, *reached]
    rows = [torch.arange(n, device=parameter.device) * 7 % config.vocab_size for n in lengths]
    decoder = model.get_decoder()
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    others = [rows[0], *((row + 1) % config.vocab_size for row in rows[1:])]
    try:
        states = decoder(input_ids=padded, use_cache=False).last_hidden_state
        found, again = (_flat_states(decoder, model, line) for line in (rows, others))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of transformers, torch or Triton; the padded path will say more
        return FlatPath(False, f"the architecture refuses it ({first_sentence(error)[:80]})")
    expected = torch.cat([row[:length] for row, length in zip(states, lengths, strict=True)])
    seen = _deviation(again[: len(rows[0])], found[: len(rows[0])])
    if not seen <= _SEEN:
        return FlatPath(False, f"rows see each other there (deviation {seen:.2g})")
    deviation = _deviation(found, expected)
    if not deviation <= _TOLERANCE.get(parameter.dtype, _HALF_TOLERANCE):
        return FlatPath(False, f"differs from padded rows (deviation {deviation:.2g})")
    attention = (
        "Triton kernels" if parameter.device.type == "cuda" else "PyTorch, rows of one length together"
    )
    return FlatPath(True, f"attention by {attention}; agrees with padded rows to {deviation:.1g}")


def _flat_states(decoder: nn.Module, model: PreTrainedModel, rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Last hidden states [N, D] of rows in one line."""
    device = rows[0].device
    places = torch.cat([torch.arange(len(row), device=device) for row in rows]).unsqueeze(0)
    ends = np.cumsum([0, *(len(row) for row in rows)])
    with flat(model, bounds_of(ends, device), _CHECKED):
        output = decoder(input_ids=torch.cat(list(rows)).unsqueeze(0), position_ids=places, use_cache=False)
    return output.last_hidden_state[0]  # type: ignore[no-any-return]


def _deviation(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference relative to that of `expected`."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())
