"""Attention of long rows by torch's kernels: which are taken, and how lines are cut. A CPU stands in for cuDNN."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from live_bytes import LiveBytes
from loratune.model import long_attention, rows
from loratune.model.long_attention import Cudnn, Flash, PackedRows, agrees

HEADS, FEATURES = 2, 16
ENDS = [0, 300, 1324, 1400]


def _on_cpu(inputs: Sequence[torch.Tensor], scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    out, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*inputs, 0.0, True, scale=scale)
    return out, sums[..., None]


def _on_cpu_backward(
    inputs: Sequence[torch.Tensor], sums: torch.Tensor, scale: float
) -> Sequence[torch.Tensor]:
    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return operator(*inputs, sums[..., 0].to(inputs[0].dtype), 0.0, True, scale=scale)


@pytest.fixture(autouse=True)
def _without_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_attention, "_cudnn", _on_cpu)
    monkeypatch.setattr(long_attention, "_cudnn_backward", _on_cpu_backward)


def drawn() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(ENDS[-1], HEADS, FEATURES, dtype=torch.float64) for _ in range(4)]


def test_rows_of_any_lengths_are_attended_alone() -> None:
    """Two rows of 300 and 1,024 tokens, the first filled up to 512, and 76 tokens that fill the line up."""
    query, key, value, grad = drawn()
    line = PackedRows(np.array(ENDS), 2)
    out, sums = Cudnn().forward(query, key, value, 0.25, line)
    found = Cudnn().backward(grad, (query, key, value, out, sums), 0.25, line)
    own = [each.clone().requires_grad_() for each in (query, key, value)]
    for row in line.places:
        q, k, v = (each[row].transpose(0, 1)[None] for each in own)
        expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.25)
        expected = expected[0].transpose(0, 1)
        assert torch.allclose(out[row], expected, atol=1e-12)
        expected.backward(grad[row])
    for gradient, leaf in zip(found, own, strict=True):
        assert torch.allclose(gradient, leaf.grad, atol=1e-6)  # the logarithms are kept in float32
    assert not out[ENDS[2] :].any()


@pytest.mark.parametrize(
    ("features", "edges", "rows", "kind"),
    [
        (128, [0, 2048, 6000], 2, Cudnn),
        (128, [0, 2048, 2100], 1, Cudnn),
        (128, [0, 2048, 3000], 2, type(None)),
        (256, [0, 4096, 8192], 2, Flash),
        (256, [0, 500, 1000], 2, type(None)),
        (64, [0, 100, 5000], 2, Flash),
        (80, [0, 100, 5000], 2, type(None)),
    ],
)
def test_which_kernels_are_taken(features: int, edges: list[int], rows: int, kind: type) -> None:
    assert type(long_attention._wished(features, PackedRows(np.array(edges), rows))) is kind


def test_kernels_that_differ_or_fail_are_not_taken() -> None:
    class Wrong(Cudnn):
        def forward(self, query, key, value, scale, line):  # type: ignore[no-untyped-def]
            return super().forward(query, key, value, 2 * scale, line)

    class Absent(Cudnn):
        def forward(self, query, key, value, scale, line):  # type: ignore[no-untyped-def]
            raise RuntimeError("no kernel found to execute")

    where = (HEADS, HEADS, FEATURES), torch.float64, torch.device("cpu")
    assert agrees(Cudnn(), Cudnn(), *where)
    assert not agrees(Wrong(), Cudnn(), *where)
    assert not agrees(Absent(), Cudnn(), *where)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("length", "window"), [(200, 7), (200, 70), (129, 128)])
def test_windows_by_some_queries_at_a_time(causal: bool, length: int, window: int) -> None:
    """On a CPU; against the mask of the whole row."""
    torch.manual_seed(0)
    shapes = [(2, heads, length, FEATURES) for heads in (4, 2, 2)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    distance = torch.arange(length)[:, None] - torch.arange(length)
    mask = (distance >= 0) & (distance < window) if causal else distance.abs() < window
    expected = torch.nn.functional.scaled_dot_product_attention(
        *inputs, attn_mask=mask, scale=0.3, enable_gqa=True
    )
    found = rows._windowed(*inputs, 0.3, window, causal)
    grad = torch.randn_like(expected)
    assert torch.allclose(found, expected, atol=1e-13)
    for own, other in zip(
        torch.autograd.grad(found, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True
    ):
        assert torch.allclose(own, other, atol=1e-13)


@pytest.mark.parametrize("window", [None, 64])
def test_attention_holds_no_square_of_a_rows_length(window: int | None) -> None:
    """Twice the tokens, twice the bytes, with heads that share keys."""
    peaks = []
    for length in (1024, 2048):
        torch.manual_seed(0)
        query, key, value = (
            torch.randn(1, heads, length, FEATURES, requires_grad=True) for heads in (4, 2, 2)
        )
        lines = rows.ByLength.of(np.array([0, length]), torch.device("cpu"))
        counted = LiveBytes()
        with counted:
            rows._by_length(query, key, value, 0.3, window, lines, True).sum().backward()
        peaks.append(counted.peak)
    assert peaks[1] < 2.4 * peaks[0]
