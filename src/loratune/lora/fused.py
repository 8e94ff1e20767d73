"""The packed low-rank products through Triton, as torch operators that torch.compile leaves in one piece.

An operator takes one tensor per module, the table with the addresses of all slots' matrices, and reads the
micro-batch's blocks from the current `Route`. Gradients of A and B go straight into the slots' flat
gradients, behind autograd's back: neither autograd nor the compiler ever sees an adapter.
Knows nothing of optimisers or losses. Imported only where Triton works.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from loratune.lora import kernels
from loratune.lora.dropout import module_salt, threshold
from loratune.lora.segments import Passenger, Places, Segment

_BLOCK_M = 64
_BLOCK_K = 64
_BLOCK_N = 128
_BLOCK_GRADIENT = 64
_LARGEST_BLOCK_R = 128

Table = npt.NDArray[np.int64]


def passenger_rows(passenger: Passenger, names: Sequence[str]) -> Table:
    """[modules, COLUMNS] one slot's rows in the tables of the modules; rank 0 where it has no matrices."""
    keep = np.float32(1 / (1 - passenger.dropout))
    rows = np.zeros((len(names), kernels.COLUMNS), np.int64)
    for row, name in zip(rows, names, strict=True):
        matrices = passenger.matrices.get(name)
        if matrices is not None:
            row[:4] = [0 if matrix is None else matrix.data_ptr() for matrix in matrices]
            row[4] = matrices.a.shape[0]
            row[5] = np.float32(passenger.scaling).view(np.int32)
            row[6:8] = module_salt(name), threshold(passenger.dropout)
            row[8] = keep.view(np.int32)
    return rows


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Bucket:
    """The slots whose largest rank needs the same block of the kernels."""

    block_r: int
    rank_blocks: int
    blocks: torch.Tensor
    """[count, 3] int32: first token, end, slot (-1: nobody's)."""
    runs: torch.Tensor
    """[count, 3] int32: the same, uncut."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Route:
    """A micro-batch as the kernels see it."""

    buckets: tuple[_Bucket, ...]
    tokens: int
    anchor: torch.Tensor
    """[1] requires a gradient, so that the graph starts at the first adapted module."""
    inner: torch.Tensor
    """[N, largest block of ranks] without memory of its own: the shape of the inner products."""
    places: Places | None


def _block_r(rank: int) -> int:
    """Ranks are computed in blocks of a power of two, at least 16: what the matrix units take."""
    return min(_LARGEST_BLOCK_R, max(16, 1 << (rank - 1).bit_length()))


def route_of(
    segments: Sequence[Segment], slots: dict[int, int], tokens: int, places: Places | None, like: torch.Tensor
) -> Route:
    """Cut segments into blocks; tokens between them are nobody's. `slots` numbers passengers by id."""
    runs: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    largest, end = 16, 0
    for segment in [*segments, None]:
        start = tokens if segment is None else segment.start
        if start > end:
            runs.setdefault((16, 1), []).append((end, start, -1))
        if segment is not None:
            rank = segment.passenger.adapter.layout.r
            block = _block_r(rank)
            blocks = -(-rank // block)
            largest, end = max(largest, block * blocks), segment.stop
            runs.setdefault((block, blocks), []).append((start, end, slots[id(segment.passenger)]))
    cuts = {key: _cut(np.array(found, np.int32)) for key, found in runs.items()}
    flat = [np.array(runs[key], np.int32) for key in runs] + list(cuts.values())
    device = torch.from_numpy(np.concatenate(flat)).to(like.device, non_blocking=True)
    pieces = device.split([len(part) for part in flat])
    return Route(
        buckets=tuple(
            _Bucket(block_r=block, rank_blocks=count, runs=run, blocks=cut)
            for (block, count), run, cut in zip(runs, pieces, pieces[len(runs) :], strict=False)
        ),
        tokens=tokens,
        anchor=like.new_zeros(1).requires_grad_(),
        inner=like.new_empty(1).expand(tokens, largest),
        places=places if any(segment.dropout for segment in segments) else None,
    )


def _cut(runs: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Runs [count, 3] as blocks of at most `_BLOCK_M` tokens."""
    counts = -(-(runs[:, 1] - runs[:, 0]) // _BLOCK_M)
    blocks = np.repeat(runs, counts, axis=0)
    within = np.arange(len(blocks)) - np.repeat(np.cumsum(counts) - counts, counts)
    blocks[:, 0] += (within * _BLOCK_M).astype(np.int32)
    blocks[:, 1] = np.minimum(blocks[:, 0] + _BLOCK_M, blocks[:, 1])
    return blocks


_current: Route | None = None


def set_route(route: Route | None) -> None:
    """Say which micro-batch the operators work on, backward passes included."""
    global _current
    _current = route


def _shrink(x: torch.Tensor, h: torch.Tensor, table: torch.Tensor, column: int, dropout: bool) -> None:
    features = x.shape[-1]
    for bucket, keys, places, drops in _buckets(dropout, table):
        kernels.shrink[len(bucket.blocks), bucket.rank_blocks](
            x, h, table, bucket.blocks, keys, places, features, h.shape[1],
            COLUMN=column, DROPOUT=drops, ALIGNED=features % 4 == 0,
            BLOCK_M=_BLOCK_M, BLOCK_K=_BLOCK_K, BLOCK_R=bucket.block_r,
        )  # fmt: skip


def _expand(
    h: torch.Tensor, y: torch.Tensor, out: torch.Tensor, table: torch.Tensor, column: int, dropout: bool
) -> None:
    features = out.shape[-1]
    for bucket, keys, places, drops in _buckets(dropout, table):
        kernels.expand[len(bucket.blocks), -(-features // _BLOCK_N)](
            h, y, out, table, bucket.blocks, keys, places, features, h.shape[1],
            COLUMN=column, DROPOUT=drops, ALIGNED=features % 4 == 0,
            BLOCK_M=_BLOCK_M, BLOCK_N=_BLOCK_N, BLOCK_R=bucket.block_r,
        )  # fmt: skip


def _gradient(x: torch.Tensor, h: torch.Tensor, table: torch.Tensor, column: int, dropout: bool) -> None:
    features = x.shape[-1]
    for bucket, keys, places, drops in _buckets(dropout, table):
        kernels.gradient[len(bucket.runs), -(-features // _BLOCK_GRADIENT), bucket.rank_blocks](
            x, h, table, bucket.runs, keys, places, features, h.shape[1],
            COLUMN=column, DROPOUT=drops, ALIGNED=features % 4 == 0,
            BLOCK_M=_BLOCK_M, BLOCK_N=_BLOCK_GRADIENT, BLOCK_R=bucket.block_r,
        )  # fmt: skip


def _buckets(dropout: bool, table: torch.Tensor) -> list[tuple[_Bucket, torch.Tensor, torch.Tensor, bool]]:
    """The current buckets, with the tokens' keys and places, and whether inputs are dropped."""
    assert _current is not None, "operators of an adapter run inside a route"
    places = _current.places if dropout else None
    keys = table if places is None else places.keys
    where = table if places is None else places.places
    return [(bucket, keys, where, places is not None) for bucket in _current.buckets]


@torch.library.custom_op("loratune::low_rank", mutates_args=())
def low_rank(
    x: torch.Tensor, y: torch.Tensor, anchor: torch.Tensor, table: torch.Tensor, inner: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """y [.., O] + scaling · (dropout(x [.., D]) Aᵀ) Bᵀ, and the inner products; `anchor` as in `segments`."""
    assert _current is not None and x.shape[:-1].numel() == _current.tokens
    h = x.new_empty(inner.shape)
    out = torch.empty_like(y)
    _shrink(x.contiguous(), h, table, kernels.COLUMN_A, dropout=True)
    _expand(h, y.contiguous(), out, table, kernels.COLUMN_B, dropout=False)
    return out, h


@low_rank.register_fake
def _(
    x: torch.Tensor, y: torch.Tensor, anchor: torch.Tensor, table: torch.Tensor, inner: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(y), x.new_empty(inner.shape)


@torch.library.custom_op("loratune::low_rank_backward", mutates_args=())
def low_rank_backward(
    grad_y: torch.Tensor, x: torch.Tensor, h: torch.Tensor, table: torch.Tensor, through: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of x ([0] unless `through`), and a zero for the anchor; fills the slots' flat gradients."""
    grad_y = grad_y.contiguous()
    x = x.contiguous()
    grad_h = torch.empty_like(h)
    _shrink(grad_y, grad_h, table, kernels.COLUMN_B, dropout=False)
    _gradient(grad_y, h, table, kernels.COLUMN_GRADIENT_B, dropout=False)
    _gradient(x, grad_h, table, kernels.COLUMN_GRADIENT_A, dropout=True)
    grad_x = torch.empty_like(x) if through else x.new_empty(0)
    if through:
        _expand(grad_h, grad_x, grad_x, table, kernels.COLUMN_A, dropout=True)
    return grad_x, x.new_zeros(1)


@low_rank_backward.register_fake
def _(
    grad_y: torch.Tensor, x: torch.Tensor, h: torch.Tensor, table: torch.Tensor, through: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    return (torch.empty_like(x) if through else x.new_empty(0)), x.new_empty(1)


def hook(module: torch.nn.Module, inputs: tuple[Any, ...], y: torch.Tensor) -> torch.Tensor | None:
    """Forward hook of every adaptable module: one function for all, so that compiled layers are alike."""
    if _current is None:
        return None
    out, _ = low_rank(inputs[0], y, _current.anchor, module.loratune_table, _current.inner)
    return out


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    x, _, _, table, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, output[1], table)
    ctx.through = ctx.needs_input_grad[0]


def _backward(ctx: Any, grad_y: torch.Tensor, _: None) -> tuple[Any, ...]:
    x, h, table = ctx.saved_tensors
    grad_x, grad_anchor = torch.ops.loratune.low_rank_backward(grad_y, x, h, table, ctx.through)
    # a compiler drops an operator whose results nobody wants, hence the anchor's gradient
    anchor = grad_anchor if torch.compiler.is_compiling() else None
    return (grad_x if ctx.through else None), grad_y, anchor, None, None


low_rank.register_autograd(_backward, setup_context=_save)
