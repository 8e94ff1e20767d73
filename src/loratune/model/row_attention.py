"""Attention within rows through Triton, as torch operators that torch.compile leaves in one piece.

Where the rows of the line in hand lie is set beside them (`set_bounds`): the layers' code knows nothing of rows.
Imported only where Triton works.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from loratune.kernels import rows as kernels
from loratune.kernels.launch import launch, much_shared_memory
from loratune.model.kept_attention import keep, repeated
from loratune.model.long_attention import Kernels, PackedRows, kernels_for

_LOG2_E = 1.4426950408889634
_UNLIMITED = 2**30
# Tiles by the largest number of features of a head; measured on an H200 (`bench/attention.py`, docs/log.md).
_Tiles = dict[int, dict[str, int]]
_ATTEND: _Tiles = {
    64: {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 1},
    128: {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 2},
    256: {"BLOCK_M": 32, "BLOCK_N": 32, "num_warps": 4, "num_stages": 1},
}
_BACKWARD_QUERY: _Tiles = {
    64: {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4, "num_stages": 2},
    128: {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 2},
    256: {"BLOCK_M": 32, "BLOCK_N": 32, "num_warps": 4, "num_stages": 1},
}
_BACKWARD_KEY: _Tiles = {
    64: {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 1},
    128: {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 1},
    256: {"BLOCK_M": 32, "BLOCK_N": 32, "num_warps": 4, "num_stages": 1},
}
# Where there is shared memory for it; those above need 96 KiB at most.
_ATTEND_LARGE = _ATTEND | {256: {"BLOCK_M": 128, "BLOCK_N": 64, "num_warps": 8, "num_stages": 1}}
_BACKWARD_QUERY_LARGE = _BACKWARD_QUERY | {
    256: {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 8, "num_stages": 1}
}

_bounds: torch.Tensor | None = None
_line: PackedRows | None = None


def set_bounds(bounds: torch.Tensor | None, line: PackedRows | None = None) -> None:
    """Say where the rows of the line lie, [2, N] as `kernels.rows.attend` has it; for backward passes too.

    `line`: the same for the host, where what is launched may depend on it.
    """
    global _bounds, _line
    _bounds, _line = bounds, line


def _now() -> torch.Tensor:
    assert _bounds is not None, "attention within rows runs inside `flat`"
    return _bounds


def _constants(query: torch.Tensor, key: torch.Tensor, scale: float, tiles: _Tiles) -> dict[str, Any]:
    """A kernel's constants for these heads."""
    dim = query.shape[-1]
    wide = max(16, 1 << (dim - 1).bit_length())
    if wide > max(tiles):
        raise ValueError(f"heads of {dim} features, the kernels take {max(tiles)} at most")
    shared = {"SCALE": scale * _LOG2_E, "GROUP": query.shape[1] // key.shape[1], "DIM": dim, "BLOCK_D": wide}
    return shared | next(setting for size, setting in tiles.items() if wide <= size)


def _dense(x: torch.Tensor) -> torch.Tensor:
    """x [N, heads, D] with the features of a head side by side, begun where `launch` wants it."""
    fits = x.stride(-1) == 1 and x.data_ptr() % 16 == 0
    return x if fits else x.clone(memory_format=torch.contiguous_format)


def row_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, window: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention of query [N, H, D] to key and value [N, G, D] within the current rows.

    `window` is the number of tokens to the left that are seen, -1 for all. Returns the output and the base-2
    logarithm of each query's sum of exponentials [H, N].
    """
    if (found := repeated()) is not None:
        return found
    kernels = _kernels(query, key, window)
    if kernels is OURS or _line is None:
        out, exponents = _attend(query, key, value, scale, window)
    else:
        out, exponents = kernels.forward(query, key, value, scale, _line)
    keep(out, exponents)
    return out, exponents


def _kernels(query: torch.Tensor, key: torch.Tensor, window: int) -> Kernels:
    return OURS if window >= 0 else kernels_for(query, key, _line, OURS)


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, window: int
) -> tuple[torch.Tensor, torch.Tensor]:
    query, key, value = _dense(query), _dense(key), _dense(value)
    tokens, heads, _ = query.shape
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    exponents = query.new_empty((heads, tokens), dtype=torch.float32)
    large = much_shared_memory(query.device)
    constants = _constants(query, key, scale, _ATTEND_LARGE if large else _ATTEND)
    launch(
        kernels.attend, (-(-tokens // constants["BLOCK_M"]), heads),
        (query, key, value, out, exponents, _now(), tokens, _UNLIMITED if window < 0 else window,
         *query.stride()[:2], *key.stride()[:2], *value.stride()[:2], *out.stride()[:2]),
        **constants,
    )  # fmt: skip
    return out, exponents


class _Ours:
    """The kernels of this file, on a line of one row: what others are compared with."""

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, line: PackedRows
    ) -> tuple[torch.Tensor, torch.Tensor]:
        with _whole(query):
            return _attend(query, key, value, scale, -1)

    def backward(
        self, grad: torch.Tensor, kept: Sequence[torch.Tensor], scale: float, line: PackedRows
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        query, key, value, out, exponents = kept
        with _whole(query):
            return _attend_backward(grad, query, key, value, out, exponents, scale, -1)


OURS = _Ours()


@contextmanager
def _whole(query: torch.Tensor) -> Iterator[None]:
    """In this block the whole line is one row."""
    before = _bounds, _line
    rows = torch.tensor([[0], [len(query)]], dtype=torch.int32, device=query.device)
    set_bounds(rows.expand(2, len(query)).contiguous())
    try:
        yield
    finally:
        set_bounds(*before)


def _fake(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, window: int
) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, heads, _ = query.shape
    return query.new_empty(query.shape), query.new_empty((heads, tokens), dtype=torch.float32)


def row_attention_backward(
    grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, out: torch.Tensor,
    exponents: torch.Tensor, scale: float, window: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Gradients of query, key and value."""
    kernels = _kernels(query, key, window)
    if kernels is OURS or _line is None:
        return _attend_backward(grad, query, key, value, out, exponents, scale, window)
    return kernels.backward(grad, (query, key, value, out, exponents), scale, _line)


def _attend_backward(
    grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, out: torch.Tensor,
    exponents: torch.Tensor, scale: float, window: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    grad, query, key, value = _dense(grad), _dense(query), _dense(key), _dense(value)
    tokens, heads, _ = query.shape
    grad_query = torch.empty_like(out)
    grad_key, grad_value = (key.new_empty(key.shape) for _ in range(2))
    products = torch.empty_like(exponents)
    limits = _now(), tokens, _UNLIMITED if window < 0 else window
    read = *query.stride()[:2], *key.stride()[:2], *value.stride()[:2]
    large = much_shared_memory(query.device)
    constants = _constants(query, key, scale, _BACKWARD_QUERY_LARGE if large else _BACKWARD_QUERY)
    launch(
        kernels.backward_query, (-(-tokens // constants["BLOCK_M"]), heads),
        (query, key, value, out, grad, exponents, products, grad_query, *limits,
         *read, *out.stride()[:2], *grad.stride()[:2]),
        FACTOR=scale, **constants,
    )  # fmt: skip
    constants = _constants(query, key, scale, _BACKWARD_KEY)
    launch(
        kernels.backward_key, (-(-tokens // constants["BLOCK_N"]), key.shape[1]),
        (query, key, value, grad, exponents, products, grad_key, grad_value, *limits,
         *read, *grad.stride()[:2], *grad_key.stride()[:2]),
        FACTOR=scale, **constants,
    )  # fmt: skip
    return grad_query, grad_key, grad_value


def _fake_backward(
    grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    query, key, value, ctx.scale, ctx.window = inputs
    ctx.save_for_backward(query, key, value, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: torch.Tensor, _: None) -> tuple[Any, ...]:
    gradients = torch.ops.loratune.row_attention_backward(grad, *ctx.saved_tensors, ctx.scale, ctx.window)
    return (*gradients, None, None)


# On the library itself, as in `lora.fused`: an operator made by `custom_op` costs the host 50 us more.
_LIBRARY: Any = torch.library.Library("loratune", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    "row_attention(Tensor query, Tensor key, Tensor value, float scale, int window) -> (Tensor, Tensor)"
)
_LIBRARY.define(
    "row_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor out, Tensor exponents, "
    "float scale, int window) -> (Tensor, Tensor, Tensor)"
)
for _device in ("CUDA", "CPU"):
    _LIBRARY.impl("row_attention", row_attention, _device)
    _LIBRARY.impl("row_attention_backward", row_attention_backward, _device)
torch.library.register_fake("loratune::row_attention", _fake, lib=_LIBRARY)
torch.library.register_fake("loratune::row_attention_backward", _fake_backward, lib=_LIBRARY)
torch.library.register_autograd("loratune::row_attention", _backward, setup_context=_save, lib=_LIBRARY)
