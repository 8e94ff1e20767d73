"""Attention of long rows by torch's own kernels, which are faster there than those that share tiles between rows.

cuDNN's where each row is long, flash attention's for wide or narrow heads. Each is compared once with our own on heads
of that kind, and not taken where it is not there or differs. Their backward passes add up in an order that depends on
timing, so that results repeat up to rounding only. Shapes: N tokens of the line, H heads of queries, G of keys and
values, D features of a head. Knows no layers.
"""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from loratune.maths.sizes import few_sizes

_CUDNN_FROM = 2048
"""Tokens that each row of a line must have for cuDNN's kernels."""
_FLASH_FROM = {64: 2048, 256: 768}
"""Mean tokens of a row from which flash attention's are, by the features of a head (`bench/attention.py`, H200: .8 and
.57 of our time at 4,096, .69 at 1,024 for heads of 256; for 128 features there is no difference)."""
_CHECKED_TOKENS = 384
_TOLERANCE = 0.02
"""Largest relative difference of output and gradients from ours; half precision alone makes .003."""

Attended = tuple[torch.Tensor, torch.Tensor]
"""Output [N, H, D], and the logarithm of each query's sum of exponentials [H, N], to whatever base."""
Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class PackedRows(NamedTuple):
    """The rows of a line of tokens, as the host knows them."""

    edges: npt.NDArray[np.int64]
    """[rows + 1] where they begin; what fills the line up counts as rows too."""
    rows: int
    """Number of rows without what fills the line up."""

    @property
    def places(self) -> list[slice]:
        """Where those rows lie."""
        return [slice(*pair) for pair in pairwise(self.edges[: self.rows + 1].tolist())]


class Kernels(Protocol):
    """One way to compute causal attention within rows."""

    def __hash__(self) -> int: ...

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, line: PackedRows
    ) -> Attended: ...

    def backward(
        self, grad: torch.Tensor, kept: Sequence[torch.Tensor], scale: float, line: PackedRows
    ) -> Gradients:
        """`kept`: query, key, value, output and logarithms."""
        ...


class Cudnn:
    """Rows that are all long, one after the other; what fills the line up gets zeros, which nobody reads."""

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, line: PackedRows
    ) -> Attended:
        out = query.new_zeros(query.shape)
        sums = query.new_zeros((query.shape[1], len(query)), dtype=torch.float32)
        for row in line.places:
            found, of_row = _cudnn([_heads_first(each[row]) for each in (query, key, value)], scale)
            out[row] = _tokens_first(found, out[row])
            sums[:, row] = of_row.reshape(len(sums), -1)[:, : row.stop - row.start]
        return out, sums

    def backward(
        self, grad: torch.Tensor, kept: Sequence[torch.Tensor], scale: float, line: PackedRows
    ) -> Gradients:
        query, key, value, out, sums = kept
        found = query.new_zeros(query.shape), key.new_zeros(key.shape), value.new_zeros(value.shape)
        for row in line.places:
            inputs = [_heads_first(each[row]) for each in (grad, query, key, value, out)]
            rest = inputs[0].shape[2] - (row.stop - row.start)
            of_row = nn.functional.pad(sums[:, row], (0, rest))[None, :, :, None].contiguous()
            for whole, part in zip(found, _cudnn_backward(inputs, of_row, scale), strict=True):
                whole[row] = _tokens_first(part, whole[row])
        return found


def _cudnn(inputs: Sequence[torch.Tensor], scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention [1, H, N, D] of query, key and value, and the logarithms [1, H, N, 1]."""
    operator = torch.ops.aten._scaled_dot_product_cudnn_attention
    out, sums = operator(*inputs, None, True, 0.0, True, False, scale=scale)[:2]
    return out, sums


def _cudnn_backward(
    inputs: Sequence[torch.Tensor], sums: torch.Tensor, scale: float
) -> Sequence[torch.Tensor]:
    """Gradients of query, key and value; `inputs`: the output's gradient, the three, the output."""
    none, tokens = torch.zeros((), dtype=torch.int64, device=sums.device), inputs[0].shape[2]
    operator = torch.ops.aten._scaled_dot_product_cudnn_attention_backward
    found: Sequence[torch.Tensor] = operator(
        *inputs, sums, none, none, None, None, None, tokens, tokens, 0.0, True, scale=scale
    )
    return found


def _heads_first(x: torch.Tensor) -> torch.Tensor:
    """[1, heads, N, D] of [N, heads, D], filled up with zeros to one of few lengths: each has kernels of its own.

    Nothing sees what comes after it, and what has no gradient gives none.
    """
    rest = few_sizes(len(x), multiple=256, parts=8) - len(x)
    return (nn.functional.pad(x, (0, 0, 0, 0, 0, rest)) if rest else x.contiguous()).transpose(0, 1)[None]


def _tokens_first(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return x[0].transpose(0, 1)[: len(like)]


class Flash:
    """Rows of any lengths."""

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, line: PackedRows
    ) -> Attended:
        q, k, v = (each if each.stride(-1) == 1 else each.contiguous() for each in (query, key, value))
        out, sums = torch.ops.aten._flash_attention_forward(
            q, k, v, *self._where(q, line), False, scale=scale
        )[:2]
        return out.contiguous(), sums.reshape(q.shape[1], len(q)).contiguous()

    def backward(
        self, grad: torch.Tensor, kept: Sequence[torch.Tensor], scale: float, line: PackedRows
    ) -> Gradients:
        q, k, v, out, sums = (each.contiguous() for each in kept)
        state = torch.zeros(2, dtype=torch.uint64, device=q.device)
        found = torch.ops.aten._flash_attention_backward(
            grad.contiguous(),
            q,
            k,
            v,
            out,
            sums,
            *self._where(q, line),
            state,
            grad.new_empty(0),
            scale=scale,
        )
        of_query, of_key, of_value = (each.contiguous() for each in found)
        return of_query, of_key, of_value

    def _where(
        self, query: torch.Tensor, line: PackedRows
    ) -> tuple[torch.Tensor, torch.Tensor, int, int, float, bool]:
        ends = torch.from_numpy(line.edges.astype(np.int32))
        ends = ends.pin_memory().to(query.device, non_blocking=True)
        longest = int(np.diff(line.edges).max())
        return ends, ends, longest, longest, 0.0, True


_CUDNN, _FLASH = Cudnn(), Flash()


def kernels_for(query: torch.Tensor, key: torch.Tensor, line: PackedRows | None, ours: Kernels) -> Kernels:
    """The fastest for the rows of a line; ours where rows are not known, short, or nothing else is right here."""
    chosen = None if line is None or query.device.type != "cuda" else _wished(query.shape[-1], line)
    if chosen is None:
        return ours
    heads = query.shape[1], key.shape[1], query.shape[2]
    return chosen if agrees(chosen, ours, heads, query.dtype, query.device) else ours


def _wished(features: int, line: PackedRows) -> Kernels | None:
    mean = line.edges[-1] / (len(line.edges) - 1)
    if features <= 128 and min(row.stop - row.start for row in line.places) >= _CUDNN_FROM:
        return _CUDNN
    wide = next((least for size, least in _FLASH_FROM.items() if features == size), None)
    return _FLASH if wide is not None and mean >= wide else None


@cache
def agrees(
    kernels: Kernels, ours: Kernels, heads: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> bool:
    """Whether output and gradients on random numbers are what ours are."""
    queries, groups, features = heads
    generator = torch.Generator(device).manual_seed(0)

    def drawn(count: int) -> torch.Tensor:
        shape = _CHECKED_TOKENS, count, features
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    query, key, value, grad = drawn(queries), drawn(groups), drawn(groups), drawn(queries)
    line = PackedRows(np.array([0, _CHECKED_TOKENS]), 1)

    def results(side: Kernels) -> list[torch.Tensor]:
        out, sums = side.forward(query, key, value, features**-0.5, line)
        return [out, *side.backward(grad, (query, key, value, out, sums), features**-0.5, line)]

    run: Callable[[Kernels], list[torch.Tensor]] = results
    try:
        pairs = list(zip(run(kernels), run(ours), strict=True))
    except torch.OutOfMemoryError:
        raise
    except Exception:  # of torch: no such operator, or not for these heads
        return False
    return all(float((a.double() - b.double()).norm() / b.double().norm()) < _TOLERANCE for a, b in pairs)
