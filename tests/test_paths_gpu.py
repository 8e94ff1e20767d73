"""The fast paths on a CUDA device, each against the reference: Triton, flat rows, compiled layers, CUDA graphs."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from engine_fixture import trial
from loratune.engine.pack import PackEngine
from loratune.engine.paths import REFERENCE, choose_paths
from loratune.engine.selfcheck import random_table, selfcheck
from loratune.lora.layout import Adapter, AdapterLayout, Target
from loratune.lora.packed import PackedAdapters
from loratune.lora.segments import Passenger, Places, Segment
from loratune.model.base import BaseModel
from loratune.model.profile import profile_of

pytestmark = pytest.mark.gpu
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
    return Adapter(hyper_parameters=hyper_parameters, layout=layout, weights=weights.cuda())


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("first_needs_gradient", [False, True])
def test_kernels_give_what_loops_give(compiled: bool, first_needs_gradient: bool) -> None:
    """Ranks 1 to 200, dropout, a module that is not targeted, tokens of nobody, a NaN neighbour."""
    torch.manual_seed(0)
    model = Two().cuda().requires_grad_(False)
    adapters = [
        adapter(1, 0.0),
        adapter(8, 0.3),
        adapter(40, 0.0, TARGETS[1:]),
        adapter(16, 0.5),
        adapter(200, 0.0),
    ]
    x, cotangent = torch.randn(TOKENS, 40).cuda(), torch.randn(TOKENS, 37).cuda()
    x[290:] = float("nan")  # the last adapter's
    places = Places(
        torch.randint(-(2**31), 2**31 - 1, (TOKENS,), dtype=torch.int32).cuda(),
        (torch.arange(TOKENS, dtype=torch.int32) % 50).cuda(),
    )
    found = []
    for triton in (False, True):
        passengers = [Passenger(each, trainable=True) for each in adapters]
        edges = [(0, 70), (70, 100), (110, 115), (115, 280), (280, 300)]
        segments = [
            Segment(passenger=p, start=a, stop=b, dropout=p.dropout > 0)
            for p, (a, b) in zip(passengers, edges, strict=True)
        ]
        packed = PackedAdapters(model, ["first", "second"], triton=triton)
        run = torch.compile(model, dynamic=True) if compiled and triton else model
        own = x.clone().requires_grad_(first_needs_gradient)
        with packed.attached(), packed.route(segments, TOKENS, places):
            y = run(own)
            y.backward(cotangent)
        found.append([y.detach()[:280], *(p.gradient for p in passengers[:4])])
        if first_needs_gradient:
            found[-1].append(own.grad[:280])
    for reference, fast in zip(*found, strict=True):
        assert torch.isfinite(reference).all()
        assert torch.linalg.vector_norm(fast - reference) <= 2e-6 * torch.linalg.vector_norm(reference)


@pytest.mark.parametrize("ranks", [(16, 8, 16), (4, 20, 128)], ids=["small", "mixed"])
def test_half_precision_reads_a_copy_that_follows_the_weights(ranks: tuple[int, ...]) -> None:
    """So wide a layer that few tokens are computed in parts of it; all products, before and after a change."""
    torch.manual_seed(0)
    target = (Target("0", 1024, 256),)
    model = nn.Sequential(nn.Linear(1024, 256, bias=False)).to("cuda", torch.bfloat16).requires_grad_(False)
    passengers = [Passenger(adapter(r, 0.0, target), trainable=True) for r in ranks]
    segments = [
        Segment(passenger=each, start=100 * i, stop=100 * (i + 1)) for i, each in enumerate(passengers)
    ]
    x, cotangent = torch.randn(TOKENS, 1024).cuda().bfloat16(), torch.randn(TOKENS, 256).cuda().bfloat16()
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
                a, b = (each.bfloat16().float() for each in part.passenger.adapter.views()["0"])
                rows, scaling = slice(part.start, part.stop), part.passenger.scaling
                given, slope = x[rows].float(), cotangent[rows].float()
                inner, back = given @ a.T, slope @ b * scaling
                collected = part.passenger.matrices["0"]
                for found, expected in (
                    (y[rows], given @ weight.T + inner @ b.T * scaling),
                    (own.grad[rows], slope @ weight + back @ a),
                    (collected.gradient_a, back.T @ given),
                    (collected.gradient_b, slope.T @ inner * scaling),
                ):
                    assert found is not None
                    assert torch.linalg.vector_norm(found.float() - expected) <= 0.01 * expected.norm()
                assert part.passenger.gradient is not None
                part.passenger.gradient.zero_()
                part.passenger.adapter.weights.mul_(-2)


def small(dtype: torch.dtype) -> BaseModel:
    config = LlamaConfig(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).cuda().eval().requires_grad_(False)
    return BaseModel(model=model, tokenizer=None, profile=profile_of(model, "small"))


def test_everything_together_is_exact_in_half_precision() -> None:
    """Flat, compiled and from CUDA graphs (shapes repeat within the eight steps)."""
    base = small(torch.bfloat16)
    paths = choose_paths(base, longest=24)
    assert paths.low_rank.triton
    assert paths.rows.flat
    assert paths.compiled
    check = selfcheck(base, random_table(512), steps=8)
    assert check.holds, check


def test_graphs_survive_a_refilled_slot_and_change_nothing() -> None:
    """Trials that enter and leave: fast paths against the reference, loss by loss."""
    base = small(torch.bfloat16)
    table = random_table(512, rows=64)
    losses = []
    for paths in (REFERENCE, None):
        packs = PackEngine(
            base=base, train=table, validation=table, study_seed=0, cost=lambda _: 1.0, paths=paths,
            max_tokens_per_micro_batch=256,
        )  # fmt: skip
        courses: dict[int, list[float]] = {}
        waiting = [trial(seed, epochs=1.0 + seed / 4, r=4 * (seed + 1)) for seed in range(5)]
        slots = packs.slots(waiting[:2])
        later = packs.slots(waiting[2:])
        with packs.attached() as step:
            while slots:
                step(slots)
                courses |= {slot.trial.seed: list(slot.losses) for slot in slots}
                slots = [slot for slot in slots if not slot.done]
                while later and len(slots) < 2:
                    slots.append(later.pop(0))
        losses.append(courses)
    for seed, reference in losses[0].items():
        assert losses[1][seed] == pytest.approx(reference, rel=2e-2)
        assert sum(losses[1][seed]) == pytest.approx(sum(reference), rel=3e-3)
