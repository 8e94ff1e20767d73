"""The packed low-rank products by Triton kernels, against loops; on a GPU or interpreted."""

import pytest
import torch
from torch import nn

from engine_fixture import trial
from kernel_device import DEVICE
from loratune.lora.layout import Adapter, AdapterLayout, Target
from loratune.lora.packed import PackedAdapters
from loratune.lora.segments import PackMember, Places, Segment

pytestmark = pytest.mark.kernels
WIDE = 1100
TARGETS = (Target("first", 40, WIDE), Target("second", WIDE, 37))
TOKENS = 300


class Two(nn.Module):
    """Two linear layers, the second one of odd size and so wide that few tokens are computed in parts of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(40, WIDE), nn.Linear(WIDE, 37)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


def adapter(r: int, dropout: float, targets: tuple[Target, ...] = TARGETS) -> Adapter:
    hyper_parameters = trial(r=r, lora_dropout=dropout).hyper_parameters
    layout = AdapterLayout.of(hyper_parameters, targets)
    weights = torch.randn(layout.size, generator=torch.Generator().manual_seed(r)) * 0.1
    return Adapter(hyper_parameters=hyper_parameters, layout=layout, weights=weights.to(DEVICE))


@pytest.mark.parametrize(
    "compiled", [False, pytest.param(True, marks=pytest.mark.gpu)], ids=["eager", "compiled"]
)
@pytest.mark.parametrize("first_needs_gradient", [False, True])
def test_kernels_give_what_loops_give(compiled: bool, first_needs_gradient: bool) -> None:
    """Ranks 1 to 200, dropout, a module that is not targeted, tokens of nobody, a NaN neighbour."""
    torch.manual_seed(0)
    model = Two().to(DEVICE).requires_grad_(False)
    adapters = [
        adapter(1, 0.0),
        adapter(8, 0.3),
        adapter(40, 0.0, TARGETS[1:]),
        adapter(16, 0.5),
        adapter(200, 0.0),
    ]
    x, cotangent = torch.randn(TOKENS, 40).to(DEVICE), torch.randn(TOKENS, 37).to(DEVICE)
    x[290:] = float("nan")  # the last adapter's
    places = Places(
        torch.randint(-(2**31), 2**31 - 1, (TOKENS,), dtype=torch.int32).to(DEVICE),
        (torch.arange(TOKENS, dtype=torch.int32) % 50).to(DEVICE),
    )
    found = []
    for triton in (False, True):
        members = [PackMember(each, trainable=True) for each in adapters]
        edges = [(0, 70), (70, 100), (110, 115), (115, 280), (280, 300)]
        segments = [
            Segment(member=p, start=a, stop=b, dropout=p.dropout > 0)
            for p, (a, b) in zip(members, edges, strict=True)
        ]
        packed = PackedAdapters(model, ["first", "second"], triton=triton)
        run = torch.compile(model, dynamic=True) if compiled and triton else model
        own = x.clone().requires_grad_(first_needs_gradient)
        with packed.attached(), packed.route(segments, TOKENS, places):
            y = run(own)
            y.backward(cotangent)
        found.append([y.detach()[:280], *(p.gradient for p in members[:4])])
        if first_needs_gradient:
            found[-1].append(own.grad[:280])
    for reference, fast in zip(*found, strict=True):
        assert torch.isfinite(reference).all()
        assert torch.linalg.vector_norm(fast - reference) <= 2e-6 * torch.linalg.vector_norm(reference)


@pytest.mark.gpu  # the interpreter's arithmetic is not that of bfloat16
@pytest.mark.parametrize("ranks", [(16, 8, 16), (4, 20, 128)], ids=["small", "mixed"])
def test_half_precision_reads_a_copy_that_follows_the_weights(ranks: tuple[int, ...]) -> None:
    """So wide a layer that few tokens are computed in parts of it; all products, before and after a change."""
    torch.manual_seed(0)
    target = (Target("0", 1024, 256),)
    model = nn.Sequential(nn.Linear(1024, 256, bias=False)).to(DEVICE, torch.bfloat16).requires_grad_(False)
    members = [PackMember(adapter(r, 0.0, target), trainable=True) for r in ranks]
    segments = [Segment(member=each, start=100 * i, stop=100 * (i + 1)) for i, each in enumerate(members)]
    x, cotangent = (
        torch.randn(TOKENS, 1024).to(DEVICE).bfloat16(),
        torch.randn(TOKENS, 256).to(DEVICE).bfloat16(),
    )
    packed = PackedAdapters(model, ["0"], triton=True)
    weight = model[0].weight.float()
    with packed.attached():
        for _ in range(2):
            own = x.clone().requires_grad_()
            with packed.route(segments, TOKENS):
                y = model(own)
                y.backward(cotangent)
            assert own.grad is not None
            for part in segments:
                a, b = (each.bfloat16().float() for each in part.member.adapter.views()["0"])
                rows, scaling = slice(part.start, part.stop), part.member.scaling
                given, slope = x[rows].float(), cotangent[rows].float()
                inner, back = given @ a.T, slope @ b * scaling
                collected = part.member.matrices["0"]
                for found, expected in (
                    (y[rows], given @ weight.T + inner @ b.T * scaling),
                    (own.grad[rows], slope @ weight + back @ a),
                    (collected.gradient_a, back.T @ given),
                    (collected.gradient_b, slope.T @ inner * scaling),
                ):
                    assert found is not None
                    assert torch.linalg.vector_norm(found.float() - expected) <= 0.01 * expected.norm()
                assert part.member.gradient is not None
                part.member.gradient.zero_()
                part.member.adapter.weights.mul_(-2)
