"""Hooks on a frozen model: they come off, they leave bare rows alone, and a NaN stays in its own rows."""

import pytest
import torch

from engine_fixture import initial_adapter, tiny_llama, trial
from loratune.engine.slot import optimiser
from loratune.errors import ModelError
from loratune.lora.layout import find_targets
from loratune.lora.packed import PackedAdapters
from loratune.lora.segments import PackMember, Segment

BASE = tiny_llama(torch.float32)
NAMES = [name for name, _, _ in BASE.profile.targets]
TOKENS = torch.arange(6 * 9).view(6, 9) % 97


def member(seed: int, target_modules: tuple[str, ...] = ("all-linear",), r: int = 4) -> PackMember:
    hyper_parameters = trial(r=r, target_modules=target_modules).hyper_parameters
    targets = find_targets(BASE.profile.targets, target_modules)
    adapter = initial_adapter(
        hyper_parameters, targets, seed=seed, base_dtype=torch.float32, device=torch.device("cpu")
    )
    torch.manual_seed(seed)
    adapter.weights.copy_(torch.randn_like(adapter.weights) * 0.1)
    return PackMember(adapter, trainable=True)


def forward(segments: list[Segment], backward: bool = True) -> torch.Tensor:
    packed = PackedAdapters(BASE.model, NAMES)
    with packed.attached(), packed.route(segments, 6 * 9):
        logits = BASE.model(input_ids=TOKENS, use_cache=False).logits
        if backward:
            logits.square().mean((1, 2)).sum().backward()
    return logits.detach()


def test_hooks_come_off_also_after_an_error() -> None:
    bare = BASE.model(input_ids=TOKENS).logits
    packed = PackedAdapters(BASE.model, NAMES)
    hooks = BASE.model.model.layers[0].mlp.up_proj._forward_hooks

    def interrupted() -> None:
        with packed.attached():
            assert hooks
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not any(module._forward_hooks for module in BASE.model.modules())
    assert torch.equal(BASE.model(input_ids=TOKENS).logits, bare)


def test_rows_without_adapter_see_the_bare_base() -> None:
    bare = BASE.model(input_ids=TOKENS).logits
    logits = forward([Segment(member=member(1), start=2 * 9, stop=4 * 9)])
    assert torch.equal(logits[:2], bare[:2])
    assert torch.equal(logits[4:], bare[4:])
    assert not torch.allclose(logits[2:4], bare[2:4])


def test_gradients_equal_autograd_through_merged_weights() -> None:
    """A and B's gradients against autograd through W + scaling · B A on the same rows."""
    rider = member(1)
    forward([Segment(member=rider, start=0, stop=6 * 9)])
    layer = BASE.model.model.layers[0].self_attn.v_proj
    name = "model.layers.0.self_attn.v_proj"
    leaves = {
        n: (a.clone().requires_grad_(), b.clone().requires_grad_()) for n, (a, b) in views(rider).items()
    }
    changed = {
        f"{n}.weight": BASE.model.get_submodule(n).weight + 2.0 * b @ a for n, (a, b) in leaves.items()
    }
    logits = torch.func.functional_call(
        BASE.model, changed, kwargs={"input_ids": TOKENS, "use_cache": False}
    ).logits
    logits.square().mean((1, 2)).sum().backward()
    assert layer.weight.grad is None
    for expected, found in zip(leaves[name], rider.matrices[name][2:], strict=True):
        torch.testing.assert_close(found, expected.grad, rtol=1e-4, atol=1e-6)


def views(rider: PackMember) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    return rider.adapter.views()


def test_nan_of_a_neighbour_changes_no_bit() -> None:
    """Same shapes, so the promise is bitwise: outputs and gradients of the others."""
    results = []
    for poison in (False, True):
        first, second, third = member(1), member(2, ("q_proj", "up_proj")), member(3, r=7)
        if poison:
            second.adapter.weights.fill_(float("nan"))
        logits = forward(
            [
                Segment(member=first, start=0, stop=2 * 9),
                Segment(member=second, start=2 * 9, stop=4 * 9),
                Segment(member=third, start=4 * 9, stop=6 * 9),
            ]
        )
        results.append((logits, first.gradient, third.gradient))
        assert bool(torch.isnan(logits[2:4]).all()) == poison
    (clean, a, b), (poisoned, c, d) = results
    assert torch.equal(clean[[0, 1, 4, 5]], poisoned[[0, 1, 4, 5]])
    assert a is not None
    assert b is not None
    assert torch.equal(a, c)
    assert torch.equal(b, d)


def test_no_gradient_mode_gives_the_same_output() -> None:
    segments = [Segment(member=member(1), start=1 * 9, stop=5 * 9)]
    with torch.no_grad():
        quiet = forward(segments, backward=False)
    torch.testing.assert_close(quiet, forward(segments), rtol=1e-6, atol=1e-6)


def test_gradients_add_up_over_micro_batches() -> None:
    rider = member(1)
    segment = Segment(member=rider, start=0, stop=6 * 9)
    forward([segment])
    assert rider.gradient is not None
    once = rider.gradient.clone()
    forward([segment])
    torch.testing.assert_close(rider.gradient, 2 * once)


def test_a_layer_that_does_not_see_every_token_is_named() -> None:
    packed = PackedAdapters(BASE.model, NAMES)
    segments = [Segment(member=member(1), start=0, stop=6 * 9)]
    with packed.attached(), packed.route(segments, 6 * 10), pytest.raises(ModelError, match="q_proj saw"):
        BASE.model(input_ids=TOKENS)


def test_an_optimiser_step_counts_as_a_change_of_the_weights() -> None:
    """Kernels read a half-precision copy that is renewed when the weights' version has changed: fused steps hide it."""
    weights = torch.zeros(8)
    descent = optimiser(weights, trial().hyper_parameters)
    weights.grad = torch.ones(8)
    before = weights._version
    descent.step()
    assert weights._version > before
