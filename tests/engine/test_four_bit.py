"""The exactness rule on a base in 4 bits, and how often its layers are unpacked."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from engine_fixture import engine, trial
from loratune.engine.reference import Course, train_alone
from loratune.engine.selfcheck import Deviation, deviation, mixed_trials, random_table, selfcheck, train_pack
from loratune.model import four_bit
from loratune.model.base import BaseModel
from loratune.model.nf4 import packed_layers
from loratune.values import Trial
from nf4_fixture import by_bitsandbytes

pytest_plugins = ["nf4_fixture"]

TABLE = random_table(257)
LAYERS = 14


def against_peft(
    base: BaseModel, other: PreTrainedModel, trials: Sequence[Trial], steps: int
) -> list[Deviation]:
    """Deviation of every trial of one pack on `base` from PEFT alone on `other`."""
    packs = engine(base, TABLE)
    found = []
    for slot, initial in train_pack(packs, trials, steps):
        targets = slot.adapter.layout.targets
        alone = train_alone(other, slot.trial, targets, TABLE, packs.batches(slot.trial), steps=steps)
        course = Course(losses=np.array(slot.losses), weights=slot.adapter.weights)
        found.append(deviation(course, alone, initial))
    return found


def unpacked_weight(layer: nn.Module) -> torch.Tensor:
    size = layer.out_features, layer.in_features
    return four_bit.unpacked(layer.packed, size, layer.weight.blocksize, torch.float64)


def test_a_mixed_pack_is_peft_on_the_same_numbers_in_float64(packed: BaseModel, plain_folder: Path) -> None:
    """Six trials that differ in everything; PEFT has plain layers that hold what the packed ones unpack to."""
    other = AutoModelForCausalLM.from_pretrained(plain_folder, dtype=torch.float64).eval()
    for name in packed_layers(packed.model):
        other.get_submodule(name).weight.data = unpacked_weight(packed.model.get_submodule(name))
    packed.model.double()
    found = against_peft(packed, other.requires_grad_(False), mixed_trials(packed), 6)
    assert max(max(each.loss, each.weights) for each in found) < 1e-9


def test_a_mixed_pack_is_qlora_as_its_users_run_it(packed: BaseModel, plain_folder: Path) -> None:
    """bitsandbytes' own layers under PEFT, loaded by transformers, in float32."""
    other = by_bitsandbytes(plain_folder, torch.float32)
    assert {type(other.get_submodule(name)) for name in packed_layers(packed.model)} == {Linear4bit}
    found = against_peft(packed, other, mixed_trials(packed)[1:5], 4)
    assert max(each.loss for each in found) < 1e-5
    assert max(each.norm for each in found) < 1e-5


def test_the_selfcheck_holds_and_leaves_the_layers_as_they_were(packed: BaseModel) -> None:
    check = selfcheck(packed, TABLE, steps=3, trials=mixed_trials(packed)[2:4])
    assert check.holds, check
    layers = [packed.model.get_submodule(name) for name in packed_layers(packed.model)]
    assert len(layers) == LAYERS
    assert {type(layer) for layer in layers} == {four_bit.PackedLinear}


@pytest.mark.parametrize("trials", [1, 4])
def test_layers_are_unpacked_once_on_the_way_there_and_once_back(
    trials: int, packed: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For one micro-batch, whoever shares it; queries, keys and values of the first layer have no way back."""
    counted: Counter[int] = Counter()
    original = four_bit.unpacked

    def counting(weights: four_bit.Packed, *arguments: object) -> torch.Tensor:
        counted[weights.weight.data_ptr()] += 1
        return original(weights, *arguments)  # type: ignore[arg-type]

    packs = engine(packed, TABLE, max_tokens_per_micro_batch=10**6, launch_tokens=10**9)
    slots = [packs.slot(trial(seed)) for seed in range(trials)]
    monkeypatch.setattr(four_bit, "unpacked", counting)
    with packs.attached() as step:
        counted.clear()
        step(slots)
    assert sorted(counted.values()) == [1] * 3 + [2] * (LAYERS - 3)


def test_compiled_layers_share_one_form_and_keep_nothing_unpacked(packed: BaseModel) -> None:
    """By torch's own partitioner, which keeps what it may not compute again: two layers, one compiled function."""
    forms = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        forms.append(graph)
        return torch._dynamo.lookup_backend("aot_eager_decomp_partition")(graph, inputs)

    blocks = [layer.mlp for layer in packed.model.model.layers]
    x = torch.randn(40, blocks[0].up_proj.in_features, requires_grad=True)
    expected = torch.autograd.grad(blocks[1](blocks[0](x)).square().sum(), x)
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    torch._dynamo.reset()
    calls = [torch.compile(type(block).forward, backend=backend, dynamic=True) for block in blocks[:1]] * 2
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = calls[1](blocks[1], calls[0](blocks[0], x))
    found = torch.autograd.grad(y.square().sum(), x)
    torch.testing.assert_close(found, expected)
    assert len(forms) == 1
    assert not [each for each in kept if each.is_floating_point() and each.numel() >= 64 * 128]
