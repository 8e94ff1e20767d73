"""The packed low-rank products through Triton, as torch operators that torch.compile leaves in one piece.

An operator takes one tensor per module, the table with the addresses of all slots' matrices, and reads the
micro-batch's blocks from the current `Route`. Gradients of A and B go straight into the slots' flat
gradients, behind autograd's back: neither autograd nor the compiler ever sees an adapter.
Knows nothing of optimisers or losses. Imported only where Triton works.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from loratune.errors import ModelError
from loratune.kernels import low_rank as kernels
from loratune.kernels.launch import launch, much_shared_memory
from loratune.lora.dropout import module_salt, threshold
from loratune.lora.layout import AdapterLayout
from loratune.lora.segments import PackMember, Places, Segment, unseen_tokens
from loratune.maths.sizes import few_sizes

_BLOCK_M = 64
_RUNS = 8
"""Runs of tokens are filled up with empty ones to a multiple of this, so that shapes repeat."""
# Measured on an H200 (`bench/low_rank.py`, docs/log.md).
_SHRINK = {"BLOCK_K": 128}
_EXPAND = {"BLOCK_M": 64, "BLOCK_N": 128, "PARTS": 1}
_EXPAND_SMALL_A = {"BLOCK_M": 32, "BLOCK_N": 128, "PARTS": 2}
"""Tiles for the gradient of the input where no rank is above 16."""
_GRADIENT = {"BLOCK_M": 64, "BLOCK_N": 128}
_GRADIENT_NARROW = {"BLOCK_M": 64, "BLOCK_N": 32}
"""Where there are few runs of tokens, so that all processors have work."""
_FEWEST_FEATURES = 512
"""Fewest features of a part, where the features of a `shrink` are cut into parts."""
_ADDED = 1024
"""Numbers that a program of `add_parts` adds up."""
_STAGES, _FEW_STAGES = 3, 2
"""Loads ahead of their use; few where there is less shared memory than on an A100."""

Table = npt.NDArray[np.int64]


def member_rows(member: PackMember, weights: torch.Tensor, names: tuple[str, ...]) -> Table:
    """[modules, COLUMNS] one slot's rows in the tables of the modules; rank 0 where it has no matrices.

    `weights` [layout.size] is what the products read, in the base's type.
    """
    modules, begins, ranks = _offsets(member.adapter.layout, names)
    rows = np.zeros((len(names), kernels.COLUMNS), np.int64)
    rows[modules, :2] = weights.data_ptr() + weights.itemsize * begins
    if (gradient := member.gradient) is not None:
        rows[modules, 2:4] = gradient.data_ptr() + gradient.itemsize * begins
    rows[modules, 4] = ranks
    rows[:, 5] = np.float32(member.scaling).view(np.int32)
    rows[:, 6] = _salts(names)
    rows[:, 7] = threshold(member.dropout)
    rows[:, 8] = np.float32(1 / (1 - member.dropout)).view(np.int32)
    return rows


@lru_cache(maxsize=64)
def _offsets(layout: AdapterLayout, names: tuple[str, ...]) -> tuple[Table, Table, Table]:
    """The layout's modules: their numbers among `names`, where A and B begin [modules, 2], their ranks."""
    numbers = {name: number for number, name in enumerate(names)}
    ranks = np.array(layout.ranks, np.int64)
    a = ranks * np.array([target.in_features for target in layout.targets], np.int64)
    b = ranks * np.array([target.out_features for target in layout.targets], np.int64)
    begins = np.cumsum(a + b) - (a + b)
    modules = np.array([numbers[target.name] for target in layout.targets], np.int64)
    return modules, np.stack([begins, begins + a], 1), ranks


@lru_cache(maxsize=8)
def _salts(names: tuple[str, ...]) -> Table:
    return np.array([module_salt(name) for name in names], np.int64)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Route:
    """A micro-batch as the kernels see it."""

    pieces: torch.Tensor
    """[runs + blocks, 3] int32, first token, end and slot (-1: none) each: the runs of tokens of one slot, then
    the same cut into blocks."""
    runs: int
    tokens: int
    largest: int
    """The block of ranks that holds the largest rank; see `kernels.low_rank.RANK_BLOCKS`."""
    rank_blocks: int
    """How many of them it takes."""
    aligned: bool
    """Whether all matrices begin at multiples of 16 bytes."""
    eights: bool
    """Whether all ranks above the smallest block are multiples of eight."""
    anchor: torch.Tensor
    """[1] requires a gradient, so that the graph starts at the first adapted module."""
    places: Places | None

    @property
    def width(self) -> int:
        """Numbers that a token has in the inner products."""
        return self.largest * self.rank_blocks

    @property
    def inner(self) -> torch.Tensor:
        """[N · width] without memory of its own: the shape of the inner products.

        One number, since a compiler takes lengths that are equal at first, as a width and a head's may be, for one.
        """
        return self.anchor.detach().expand(self.tokens * self.width)


def route_of(
    segments: Sequence[Segment],
    slots: dict[int, int],
    tokens: int,
    places: Places | None,
    device: torch.device,
) -> Route:
    """Cut segments into blocks; tokens between them belong to none. `slots` numbers members by id."""
    runs: list[tuple[int, int, int]] = []
    end = 0
    for segment in segments:
        if segment.start > end:
            runs.append((end, segment.start, -1))
        runs.append((segment.start, segment.stop, slots[id(segment.member)]))
        end = segment.stop
    runs.append((end, tokens, -1))  # also where it is empty, so that shapes repeat
    whole = _padded(np.array(runs, np.int32), few_sizes(len(runs), multiple=_RUNS, parts=1))
    # a run of n tokens has at most n / M + 1 blocks: with all that are possible shapes repeat
    blocks = _padded(_cut(np.array(runs, np.int32)), tokens // _BLOCK_M + len(whole))
    ranks = {rank for segment in segments for rank in segment.member.ranks}
    rank = max(ranks, default=1)
    largest = next((block for block in kernels.RANK_BLOCKS if rank <= block), kernels.RANK_BLOCKS[-1])
    return Route(
        pieces=to_device(np.concatenate([whole, blocks]), device),
        runs=len(whole),
        tokens=tokens,
        largest=largest,
        rank_blocks=ceil(rank / largest),
        aligned=all(segment.member.aligned for segment in segments),
        eights=all(rank % 8 == 0 for rank in ranks if rank > kernels.RANK_BLOCKS[0]),
        anchor=torch.zeros(1, device=device, requires_grad=True),
        places=places if any(segment.dropout for segment in segments) else None,
    )


def to_device(values: npt.NDArray[np.int32], device: torch.device) -> torch.Tensor:
    """A copy on the device; the host does not wait for it."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _padded(pieces: npt.NDArray[np.int32], count: int) -> npt.NDArray[np.int32]:
    """The pieces, filled up with empty ones to `count`, and on to a multiple of four: tables begin at 16 bytes."""
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
    runs: torch.Tensor
    blocks: torch.Tensor
    anchor: torch.Tensor
    inner: torch.Tensor


_current: _Current | None = None


def set_route(route: Route | None) -> None:
    """Say which micro-batch the operators work on, backward passes included."""
    global _current
    if route is None:
        _current = None
    else:
        runs, blocks = route.pieces[: route.runs], route.pieces[route.runs :]
        _current = _Current(route, runs, blocks, route.anchor, route.inner)


def _shrink(x: torch.Tensor, h: torch.Tensor, table: torch.Tensor, column: int) -> None:
    now, constants, dropout = _launching(column, table, dropping=kernels.COLUMN_A)
    grid = len(now.blocks), now.route.rank_blocks
    parts = _parts(grid[0] * grid[1], x.shape[-1], x.device)
    target = h if parts == 1 else torch.empty((parts, *h.shape), dtype=torch.float32, device=h.device)
    launch(
        kernels.shrink, (*grid, parts),
        (x, target, table, now.blocks, *dropout, x.shape[-1], now.route.width, h.numel()),
        **constants, BLOCK_M=_BLOCK_M, **_SHRINK, STAGES=_stages(x.device), PARTS=parts,
    )  # fmt: skip
    if parts > 1:
        launch(
            kernels.add_parts,
            (-(-h.numel() // _ADDED),),
            (target, h, h.numel(), h.numel()),
            PARTS=parts,
            BLOCK=_ADDED,
        )


def _expand(h: torch.Tensor, y: torch.Tensor, out: torch.Tensor, table: torch.Tensor, column: int) -> None:
    now, constants, dropout = _launching(column, table, dropping=kernels.COLUMN_A)
    features = out.shape[-1]
    small = column == kernels.COLUMN_A and now.route.largest == kernels.RANK_BLOCKS[0]
    sizes = _EXPAND_SMALL_A if small else _EXPAND
    launch(
        kernels.expand, (len(now.blocks) * sizes["PARTS"], -(-features // sizes["BLOCK_N"])),
        (h, y, out, table, now.blocks, *dropout, features, now.route.width),
        **constants, **sizes,
    )  # fmt: skip


def _gradient(x: torch.Tensor, h: torch.Tensor, table: torch.Tensor, column: int) -> None:
    now, constants, dropout = _launching(column, table, dropping=kernels.COLUMN_GRADIENT_A)
    features = x.shape[-1]
    programs = len(now.runs) * -(-features // _GRADIENT["BLOCK_N"])
    sizes = _GRADIENT if programs >= _processors(x.device) else _GRADIENT_NARROW
    launch(
        kernels.gradient, (len(now.runs), -(-features // sizes["BLOCK_N"]), now.route.rank_blocks),
        (x, h, table, now.runs, *dropout, features, now.route.width),
        **constants, **sizes, STAGES=_stages(x.device),
    )  # fmt: skip


def _parts(programs: int, features: int, device: torch.device) -> int:
    """Parts of the features that a `shrink` of few programs is cut into, so that all processors have work."""
    parts = 1
    while 2 * parts * programs <= _processors(device) and features >= 2 * parts * _FEWEST_FEATURES:
        parts *= 2
    return parts


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _stages(device: torch.device) -> int:
    return _STAGES if much_shared_memory(device) else _FEW_STAGES


def _launching(
    column: int, table: torch.Tensor, *, dropping: int
) -> tuple[_Current, dict[str, int | bool], tuple[torch.Tensor, torch.Tensor]]:
    """The route in force, the constants that all kernels share, and the tokens' keys and places for dropout.

    Inputs are dropped where `column` is `dropping`.
    """
    assert _current is not None, "operators of an adapter run inside a route"
    route = _current.route
    places = route.places if column == dropping else None
    constants = {
        "COLUMN": column, "DROPOUT": places is not None, "ALIGNED": route.aligned, "LARGEST": route.largest,
        "EIGHTS": route.eights,
    }  # fmt: skip
    return _current, constants, (table, table) if places is None else (places.keys, places.places)


def low_rank(
    x: torch.Tensor, y: torch.Tensor, anchor: torch.Tensor, table: torch.Tensor, inner: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """y [.., O] + scaling · (dropout(x [.., D]) Aᵀ) Bᵀ, and the inner products; `anchor` as in
    `segments`. See `Route.inner` for their shape.
    """
    assert _current is not None, "operators of an adapter run inside a route"
    if x.shape[:-1].numel() != _current.route.tokens:
        raise ModelError(unseen_tokens(x.shape, _current.route.tokens))
    h = x.new_empty(inner.shape)
    out = y.new_empty(y.shape)
    _shrink(x.contiguous(), h, table, kernels.COLUMN_A)
    _expand(h, y.contiguous(), out, table, kernels.COLUMN_B)
    return out, h


def _fake_low_rank(
    x: torch.Tensor, y: torch.Tensor, anchor: torch.Tensor, table: torch.Tensor, inner: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return y.new_empty(y.shape), x.new_empty(inner.shape)


def low_rank_backward(
    grad_y: torch.Tensor, x: torch.Tensor, h: torch.Tensor, table: torch.Tensor, through: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of x ([0] unless `through`), and anything for the anchor; fills the slots' flat gradients.

    In a recording the gradients of B and A, on which nothing waits, run beside the other products: none of them alone
    keeps the device's memory busy.
    """
    grad_y = grad_y.contiguous()
    x = x.contiguous()
    grad_h = torch.empty_like(h)
    grad_x = x.new_empty(x.shape if through else 0)
    with _beside(x.device):
        _gradient(grad_y, h, table, kernels.COLUMN_GRADIENT_B)
    _shrink(grad_y, grad_h, table, kernels.COLUMN_B)
    with _beside(x.device):
        _gradient(x, grad_h, table, kernels.COLUMN_GRADIENT_A)
    if through:
        _expand(grad_h, grad_x, grad_x, table, kernels.COLUMN_A)
    _wait_for_those_beside(x.device)
    return grad_x, x.new_empty(1)


@contextmanager
def _beside(device: torch.device) -> Iterator[None]:
    """In a recording what is launched in the block runs beside what comes after it, until it is waited for."""
    if not _records(device):
        yield
        return
    side = _side_stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        yield


def _wait_for_those_beside(device: torch.device) -> None:
    if _records(device):
        torch.cuda.current_stream(device).wait_stream(_side_stream(device))


def _records(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _fake_backward(
    grad_y: torch.Tensor, x: torch.Tensor, h: torch.Tensor, table: torch.Tensor, through: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape if through else 0), x.new_empty(1)


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
