"""Initial weights against PEFT's own, bit for bit, with one rank and with a rank for each module."""

import pytest
import torch
from peft import get_peft_model

from engine_fixture import initial_adapter, tiny_family
from loratune.lora.layout import find_targets, initial_adapters
from loratune.lora.peft_io import lora_config
from loratune.values import ALL_LINEAR, HyperParameters


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "target_modules"),
    [("llama", ALL_LINEAR), ("llama", ("q_proj", "down_proj")), ("gpt2", ALL_LINEAR), ("gpt2", ("c_proj",))],
)
@pytest.mark.parametrize("patterned", [False, True])
def test_equals_peft(
    family: str, target_modules: tuple[str, ...], dtype: torch.dtype, patterned: bool
) -> None:
    base = tiny_family(family, dtype)
    targets = find_targets(base.profile.targets, target_modules)
    wanted = HyperParameters(
        r=3,
        lora_alpha=6,
        learning_rate=1e-3,
        batch_size=1,
        target_modules=target_modules,
        rank_pattern=tuple((t.name, 1 + i % 5) for i, t in enumerate(targets)) if patterned else (),
    )
    state = torch.get_rng_state()
    adapter = initial_adapter(wanted, targets, seed=11, base_dtype=dtype, device=torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state), "the global random state was touched"
    torch.manual_seed(11)
    model = get_peft_model(base.model, lora_config(wanted, base.model, targets))
    for name, (a, b) in adapter.views().items():
        layer = model.base_model.model.get_submodule(name)
        assert torch.equal(a, layer.lora_A["default"].weight)
        assert torch.equal(b, layer.lora_B["default"].weight)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable == adapter.layout.size == adapter.weights.numel()


def test_many_at_once_are_those_alone_each_with_memory_of_its_own() -> None:
    """Two rates at one rank and seed share what is drawn, another seed or rank does not."""
    base = tiny_family("llama", torch.bfloat16)
    targets = find_targets(base.profile.targets, ALL_LINEAR)
    wanted = [
        (HyperParameters(r=r, lora_alpha=6, learning_rate=rate, batch_size=1), targets, seed)
        for r, rate, seed in ((3, 1e-3, 11), (3, 1e-2, 11), (3, 1e-3, 12), (4, 1e-3, 11))
    ]
    found = initial_adapters(wanted, base_dtype=torch.bfloat16, device=torch.device("cpu"))
    for adapter, (recipe, _, seed) in zip(found, wanted, strict=True):
        alone = initial_adapter(
            recipe, targets, seed=seed, base_dtype=torch.bfloat16, device=torch.device("cpu")
        )
        assert adapter.hyper_parameters == recipe
        assert torch.equal(adapter.weights, alone.weights)
    assert len({adapter.weights.data_ptr() for adapter in found}) == len(found)
