"""Attention within rows by Triton kernels, against rows computed one by one; on a GPU or interpreted."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from kernel_device import CUDA, DEVICE, HALF
from loratune.model.rows import table_of

pytestmark = pytest.mark.kernels
ENDS = [0, 5, 22, 22, 25, 34, 98, 98 + 64, *((700, 701, 1000) if CUDA else (280, 281, 330))]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-3}


def drawn(heads: int, groups: int, features: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Query, key, value and the gradient of the output, [N, heads, features], laid out by head as models do."""
    torch.manual_seed(0)
    shapes = [(count, ENDS[-1], features) for count in (heads, groups, groups, heads)]
    return [torch.randn(shape).to(DEVICE, dtype).transpose(0, 1) for shape in shapes]


def row_by_row(lines: list[torch.Tensor], window: int) -> list[torch.Tensor]:
    """Output and gradients in float32."""
    query, key, value = (each.float().detach().requires_grad_() for each in lines[:3])
    found = []
    for start, stop in pairwise(ENDS):
        q, k, v = (each[start:stop].transpose(0, 1) for each in (query, key, value))
        k, v = (each.repeat_interleave(len(q) // len(each), 0) for each in (k, v))
        places = torch.arange(stop - start, device=DEVICE)
        distance = places[:, None] - places
        seen = (distance >= 0) & ((distance <= window) if window >= 0 else True)
        scores = (q @ k.mT * query.shape[-1] ** -0.5).masked_fill(~seen, -torch.inf)
        found.append((scores.softmax(-1) @ v).transpose(0, 1))
    out = torch.cat(found)
    out.backward(lines[3].float())
    return [out.detach(), *(each.grad for each in (query, key, value) if each.grad is not None)]


def by_kernels(lines: list[torch.Tensor], window: int) -> list[torch.Tensor]:
    from loratune.model import row_attention

    row_attention.set_bounds(table_of(np.array(ENDS)).to(DEVICE))
    query, key, value = (each.detach().requires_grad_() for each in lines[:3])
    out = torch.ops.loratune.row_attention(query, key, value, query.shape[-1] ** -0.5, window)[0]
    out.backward(lines[3])
    return [out.detach(), *(each.grad for each in (query, key, value) if each.grad is not None)]


@pytest.mark.parametrize("window", [-1, 40])
@pytest.mark.parametrize(
    ("heads", "groups", "features", "dtype"),
    [
        (4, 2, 64, torch.float32),
        (14, 2, 64, HALF),
        (3, 1, 80, HALF),
        (8, 2, 128, HALF),
        (4, 1, 256, HALF),
    ],
)
def test_kernels_give_what_rows_give_one_by_one(
    heads: int, groups: int, features: int, dtype: torch.dtype, window: int
) -> None:
    """Rows of 0 to 538 tokens that share tiles or fill several, heads that share keys, a sliding window."""
    lines = drawn(heads, groups, features, dtype)
    for found, expected in zip(by_kernels(lines, window), row_by_row(lines, window), strict=True):
        assert torch.linalg.vector_norm(found.float() - expected) <= TOLERANCE[dtype] * expected.norm()


@pytest.mark.parametrize("broken", range(4), ids=["query", "key", "value", "gradient"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_row(broken: int, number: float) -> None:
    """A trial that breaks down shares tiles with others: not one bit of theirs changes, and its own shows it."""
    lines = drawn(4, 2, 64, HALF)
    clean = by_kernels(lines, -1)
    lines[broken][23:25] = number
    found = by_kernels(lines, -1)
    others = torch.cat([torch.arange(22), torch.arange(25, ENDS[-1])]).to(DEVICE)
    for now, before in zip(found, clean, strict=True):
        assert torch.equal(now[others], before[others])
    assert not torch.isfinite(found[2][22:25]).all()
    if broken < 3:
        assert not torch.isfinite(found[0][24]).all()
    if broken == 3:
        assert not torch.isfinite(found[3][22:25]).any()  # else an adapter of values alone would be trained
