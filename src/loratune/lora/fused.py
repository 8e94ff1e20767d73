"""The packed low-rank products through Triton, as torch operators that torch.compile leaves in one piece.

An operator takes one tensor per module, the table with the addresses of all slots' matrices, and reads the
micro-batch's blocks from the current `Route`. Gradients of A and B go straight into the slots' flat
gradients, behind autograd's back: neither autograd nor the compiler ever sees an adapter.
Knows nothing of optimisers or losses. Imported only where Triton works.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from loratune.errors import ModelError
from loratune.lora import kernels
from loratune.lora.dropout import module_salt, threshold
from loratune.lora.launch import launch
from loratune.lora.segments import Passenger, Places, Segment, unseen_tokens
from loratune.maths.sizes import few_sizes

_BLOCK_M = 64
_LARGEST_BLOCK_R = 128
_RUNS = 8
"""Runs of tokens are filled up with empty ones to a multiple of this, so that shapes repeat."""
# Measured on an H100 at 16,384 tokens, rank 16 (docs/log.md).
_EXPAND = {"BLOCK_M": 32, "BLOCK_N": 128, "PARTS": 2}
_GRADIENT = {"BLOCK_M": 64, "BLOCK_N": 128}

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


class _Bucket(NamedTuple):
    """The slots whose largest rank needs the same block of the kernels."""

    block_r: int
    rank_blocks: int
    blocks: torch.Tensor
    """[count, 3] int32: first token, end, slot (-1: nobody's)."""
    runs: torch.Tensor
    """[count, 3] int32: the same, uncut."""


class _Shape(NamedTuple):
    """Of one bucket's part in a route's pieces."""

    block_r: int
    rank_blocks: int
    runs: int
    blocks: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Route:
    """A micro-batch as the kernels see it."""

    shapes: tuple[_Shape, ...]
    pieces: torch.Tensor
    """[Σ runs + blocks, 3] int32: all buckets' runs, then all buckets' blocks."""
    tokens: int
    aligned: bool
    """Whether all matrices begin at multiples of 16 bytes."""
    anchor: torch.Tensor
    """[1] requires a gradient, so that the graph starts at the first adapted module."""
    places: Places | None

    @property
    def buckets(self) -> tuple[_Bucket, ...]:
        """Views of the pieces."""
        sizes = [shape.runs for shape in self.shapes] + [shape.blocks for shape in self.shapes]
        parts = torch.split(self.pieces, sizes)
        blocks = parts[len(self.shapes) :]
        return tuple(
            _Bucket(block_r=shape.block_r, rank_blocks=shape.rank_blocks, runs=run, blocks=block)
            for shape, run, block in zip(self.shapes, parts, blocks, strict=False)
        )

    @property
    def inner(self) -> torch.Tensor:
        """[N, largest block of ranks] without memory of its own: the shape of the inner products."""
        largest = max(shape.block_r * shape.rank_blocks for shape in self.shapes)
        return self.anchor.detach().expand(self.tokens, largest)


def _block_r(rank: int) -> int:
    """Ranks are computed in blocks that the matrix units take; three sizes, so that mixed packs launch little."""
    return next((block for block in (16, 64) if rank <= block), _LARGEST_BLOCK_R)


def route_of(
    segments: Sequence[Segment],
    slots: dict[int, int],
    tokens: int,
    places: Places | None,
    device: torch.device,
) -> Route:
    """Cut segments into blocks; tokens between them are nobody's. `slots` numbers passengers by id."""
    runs: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    nobodys: list[tuple[int, int, int]] = []
    end = 0
    for segment in [*segments, None]:
        start = tokens if segment is None else segment.start
        if start > end:
            nobodys.append((end, start, -1))
        if segment is not None:
            rank = segment.passenger.adapter.layout.r
            block, end = _block_r(rank), segment.stop
            key = block, -(-rank // block)
            runs.setdefault(key, []).append((start, end, slots[id(segment.passenger)]))
    ordered = sorted(runs) or [(16, 1)]
    runs.setdefault(ordered[0], []).extend(nobodys)  # with any others: shapes repeat more
    pieces = [np.array(runs[key], np.int32) for key in ordered]
    whole = [_padded(run, few_sizes(len(run), multiple=_RUNS, parts=1)) for run in pieces]
    # A run of n tokens has at most n / M + 1 blocks: with all that are possible in the quarters of the line that the
    # bucket's tokens take, shapes repeat.
    quarters = [ceil(4 * int((run[:, 1] - run[:, 0]).sum()) / tokens) for run in pieces]
    limits = [n * tokens // (4 * _BLOCK_M) + len(run) for n, run in zip(quarters, whole, strict=True)]
    blocks = [_padded(_cut(run), limit) for run, limit in zip(pieces, limits, strict=True)]
    return Route(
        shapes=tuple(
            _Shape(*key, len(run), len(cut)) for key, run, cut in zip(ordered, whole, blocks, strict=True)
        ),
        pieces=to_device(np.concatenate(whole + blocks), device),
        tokens=tokens,
        aligned=all(segment.passenger.aligned for segment in segments),
        anchor=torch.zeros(1, device=device, requires_grad=True),
        places=places if any(segment.dropout for segment in segments) else None,
    )


def to_device(values: npt.NDArray[np.int32], device: torch.device) -> torch.Tensor:
    """A copy on the device; the host does not wait for it."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _padded(pieces: npt.NDArray[np.int32], count: int) -> npt.NDArray[np.int32]:
    """With empty pieces of nobody up to `count`, and on to a multiple of four: tables begin at 16 bytes."""
    rest = -(-count // 4) * 4 - len(pieces)
    return np.concatenate([pieces, np.tile(np.array([0, 0, -1], np.int32), (rest, 1))])


def _cut(runs: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Runs [count, 3] as blocks of at most `_BLOCK_M` tokens."""
    counts = -(-(runs[:, 1] - runs[:, 0]) // _BLOCK_M)
    blocks = np.repeat(runs, counts, axis=0)
    within = np.arange(len(blocks)) - np.repeat(np.cumsum(counts) - counts, counts)
    blocks[:, 0] += (within * _BLOCK_M).astype(np.int32)
    blocks[:, 1] = np.minimum(blocks[:, 0] + _BLOCK_M, blocks[:, 1])
    return blocks


class _Current(NamedTuple):
    """The route in force, with what every operator of a micro-batch asks for."""

    route: Route
    buckets: tuple[_Bucket, ...]
    anchor: torch.Tensor
    inner: torch.Tensor


_current: _Current | None = None


def set_route(route: Route | None) -> None:
    """Say which micro-batch the operators work on, backward passes included."""
    global _current
    _current = None if route is None else _Current(route, route.buckets, route.anchor, route.inner)


def _shrink(x: torch.Tensor, h: torch.Tensor, table: torch.Tensor, column: int) -> None:
    features = x.shape[-1]
    for bucket, keys, places, drops in _buckets(column == kernels.COLUMN_A, table):
        small = bucket.block_r == 16
        launch(
            kernels.shrink, (len(bucket.blocks), bucket.rank_blocks),
            (x, h, table, bucket.blocks, keys, places, features, h.shape[1]),
            COLUMN=column, DROPOUT=drops, ALIGNED=_aligned(),
            BLOCK_M=_BLOCK_M, BLOCK_K=128 if small else 64, BLOCK_R=bucket.block_r,
            stages=4 if small and x.dtype != torch.float32 else 2,
        )  # fmt: skip


def _expand(h: torch.Tensor, y: torch.Tensor, out: torch.Tensor, table: torch.Tensor, column: int) -> None:
    features = out.shape[-1]
    for bucket, keys, places, drops in _buckets(column == kernels.COLUMN_A, table):
        grid = len(bucket.blocks) * _EXPAND["PARTS"], -(-features // _EXPAND["BLOCK_N"])
        launch(
            kernels.expand, grid, (h, y, out, table, bucket.blocks, keys, places, features, h.shape[1]),
            COLUMN=column, DROPOUT=drops, ALIGNED=_aligned(),
            **_EXPAND, BLOCK_R=bucket.block_r, stages=2,
        )  # fmt: skip


def _gradient(x: torch.Tensor, h: torch.Tensor, table: torch.Tensor, column: int) -> None:
    features = x.shape[-1]
    for bucket, keys, places, drops in _buckets(column == kernels.COLUMN_GRADIENT_A, table):
        grid = len(bucket.runs), -(-features // _GRADIENT["BLOCK_N"]), bucket.rank_blocks
        launch(
            kernels.gradient, grid, (x, h, table, bucket.runs, keys, places, features, h.shape[1]),
            COLUMN=column, DROPOUT=drops, ALIGNED=_aligned(),
            **_GRADIENT, BLOCK_R=bucket.block_r, stages=2,
        )  # fmt: skip


def _aligned() -> bool:
    return _current is not None and _current.route.aligned


def _buckets(
    dropout: bool, table: torch.Tensor
) -> Iterator[tuple[_Bucket, torch.Tensor, torch.Tensor, bool]]:
    """The current buckets, with the tokens' keys and places, and whether inputs are dropped."""
    assert _current is not None, "operators of an adapter run inside a route"
    places = _current.route.places if dropout else None
    for bucket in _current.buckets:
        if places is None:
            yield bucket, table, table, False
        else:
            yield bucket, places.keys, places.places, True


def low_rank(
    x: torch.Tensor, y: torch.Tensor, anchor: torch.Tensor, table: torch.Tensor, inner: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """y [.., O] + scaling · (dropout(x [.., D]) Aᵀ) Bᵀ, and the inner products; `anchor` as in `segments`."""
    assert _current is not None, "operators of an adapter run inside a route"
    if x.shape[:-1].numel() != _current.route.tokens:
        raise ModelError(unseen_tokens(x.shape, _current.route.tokens))
    h = x.new_empty(inner.shape)
    out = torch.empty_like(y)
    _shrink(x.contiguous(), h, table, kernels.COLUMN_A)
    _expand(h, y.contiguous(), out, table, kernels.COLUMN_B)
    return out, h


def _fake_low_rank(
    x: torch.Tensor, y: torch.Tensor, anchor: torch.Tensor, table: torch.Tensor, inner: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(y), x.new_empty(inner.shape)


def low_rank_backward(
    grad_y: torch.Tensor, x: torch.Tensor, h: torch.Tensor, table: torch.Tensor, through: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of x ([0] unless `through`), and a zero for the anchor; fills the slots' flat gradients."""
    grad_y = grad_y.contiguous()
    x = x.contiguous()
    grad_h = torch.empty_like(h)
    _shrink(grad_y, grad_h, table, kernels.COLUMN_B)
    _gradient(grad_y, h, table, kernels.COLUMN_GRADIENT_B)
    _gradient(x, grad_h, table, kernels.COLUMN_GRADIENT_A)
    grad_x = torch.empty_like(x) if through else x.new_empty(0)
    if through:
        _expand(grad_h, grad_x, grad_x, table, kernels.COLUMN_A)
    return grad_x, x.new_zeros(1)


def _fake_backward(
    grad_y: torch.Tensor, x: torch.Tensor, h: torch.Tensor, table: torch.Tensor, through: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    return (torch.empty_like(x) if through else x.new_empty(0)), x.new_empty(1)


def hook(module: torch.nn.Module, inputs: tuple[Any, ...], y: torch.Tensor) -> torch.Tensor | None:
    """Forward hook of every adaptable module: one function for all, so that compiled layers are alike."""
    if _current is None:
        return None
    out, _ = torch.ops.loratune.low_rank(inputs[0], y, _current.anchor, module.loratune_table, _current.inner)
    return out  # type: ignore[no-any-return]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    x, _, _, table, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, output[1], table)
    ctx.through = ctx.needs_input_grad[0]


def _backward(ctx: Any, grad_y: torch.Tensor, _: None) -> tuple[Any, ...]:
    x, h, table = ctx.saved_tensors
    grad_x, grad_anchor = torch.ops.loratune.low_rank_backward(grad_y, x, h, table, ctx.through)
    # A compiler (its tensors are subclasses) drops an operator whose results nobody wants: hence the anchor's.
    anchor = None if type(grad_y) is torch.Tensor else grad_anchor
    return (grad_x if ctx.through else None), grad_y, anchor, None, None


# Defined on the library itself: `torch.library.custom_op` adds 50 us of checks to each of some hundred calls.
_LIBRARY: Any = torch.library.Library("loratune", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("low_rank(Tensor x, Tensor y, Tensor anchor, Tensor table, Tensor inner) -> (Tensor, Tensor)")
_LIBRARY.define(
    "low_rank_backward(Tensor grad_y, Tensor x, Tensor h, Tensor table, bool through) -> (Tensor, Tensor)"
)
for _device in ("CUDA", "CPU"):
    _LIBRARY.impl("low_rank", low_rank, _device)
    _LIBRARY.impl("low_rank_backward", low_rank_backward, _device)
torch.library.register_fake("loratune::low_rank", _fake_low_rank, lib=_LIBRARY)
torch.library.register_fake("loratune::low_rank_backward", _fake_backward, lib=_LIBRARY)
torch.library.register_autograd("loratune::low_rank", _backward, setup_context=_save, lib=_LIBRARY)
