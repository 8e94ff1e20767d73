"""The memory model against real tensors: parts that must be exact are exact, the rest within stated bounds."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from families import EXPERTS, FAMILIES, random_model
from llama_8b import llama_8b, on_cuda, trial
from loratune.costs.execution import NF4_BYTES, ON_CPU_PADDED, ON_CUDA
from loratune.costs.memory import (
    MemoryEstimate,
    adapter_bytes,
    estimate_pack,
    tokens_in_flight,
    weight_bytes,
)
from loratune.model.profile import profile_of
from loratune.values import HyperParameters, ModelProfile
from memory_fixture import LENGTH, passengers_of, saved_bytes


def estimated(profile: ModelProfile, pack: list[HyperParameters]) -> MemoryEstimate:
    return estimate_pack(profile, pack, max_length=LENGTH, micro_batch_tokens=2**20, execution=ON_CPU_PADDED)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_persistent_parts_are_the_bytes_of_the_tensors(dtype: torch.dtype) -> None:
    model = random_model("llama", dtype)
    profile = profile_of(model, "llama")
    pack = [trial(4), trial(2, targets=("q_proj", "v_proj")), trial(16)]
    estimate = estimated(profile, pack)
    members = passengers_of(model, profile, pack)
    weights = [member.adapter.weights for member in members]
    optimiser = torch.optim.AdamW(weights)
    for member, tensor in zip(members, weights, strict=True):
        tensor.grad = member.gradient
    optimiser.step()
    moments = [state[name] for state in optimiser.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert estimate.weights == sum(parameter.nbytes for parameter in model.parameters())
    assert estimate.adapters == sum(tensor.nbytes for tensor in weights)
    assert estimate.gradients == sum(p.gradient.nbytes for p in members if p.gradient is not None)
    assert estimate.optimiser == sum(moment.nbytes for moment in moments)


def test_dora_keeps_its_outputs_and_has_magnitudes() -> None:
    model = random_model("llama")
    profile = profile_of(model, "llama")
    plain, dora = trial(), replace(trial(), use_dora=True)
    (member,) = passengers_of(model, profile, [dora])
    assert estimated(profile, [dora]).adapters == member.adapter.weights.nbytes
    more = saved_bytes(model, profile, [dora]) - saved_bytes(model, profile, [plain])
    told = estimated(profile, [dora]).activations - estimated(profile, [plain]).activations
    assert told == more > 0


RATIOS = {
    "llama": (1.0, 1.06),  # the first norm sees no gradient: 2 layers make that large
    "qwen2": (1.0, 1.06),
    "qwen3": (1.0, 1.06),
    "gemma": (1.0, 1.06),
    "mistral": (1.0, 1.06),
    "gpt2": (1.0, 1.12),
    "phi": (1.0, 1.14),
    "mixtral": (0.95, 1.05),
    "gemma3_text": (0.90, 1.0),  # past its window a mask makes attention keep all heads' keys
    "phi3": (0.85, 1.0),  # fused projections are split into copies
    "qwen2_moe": (0.90, 1.0),
    "gpt_neox": (1.0, 1.40),  # its GELU keeps one tensor, the model allows for four
}
"""Predicted over measured activations, lowest and highest."""


@pytest.mark.parametrize("family", [*FAMILIES, *EXPERTS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_activations_are_what_autograd_saves(family: str, dtype: torch.dtype) -> None:
    model = random_model(family, dtype)
    profile = profile_of(model, family)
    low, high = RATIOS[family]
    assert low <= estimated(profile, [trial()]).activations / saved_bytes(model, profile, [trial()]) <= high


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_layer_more_adds_exactly_what_autograd_saves_for_it(dtype: torch.dtype) -> None:
    def llama(layers: int) -> PreTrainedModel:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=64,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
        return LlamaForCausalLM(config).to(dtype)

    pack = [trial(4, 3), trial(16, 2), trial(2, 3, ("q_proj", "down_proj"))]
    measured, predicted = [], []
    for layers in (2, 5):
        model = llama(layers)
        profile = profile_of(model, "llama")
        measured.append(saved_bytes(model, profile, pack))
        predicted.append(estimated(profile, pack).activations)
    assert measured[1] - measured[0] == predicted[1] - predicted[0]


def test_parts_add_up_and_grow_with_what_they_depend_on() -> None:
    small = on_cuda([trial(8, 4)] * 4)
    assert small.total == sum(small.parts.values())
    assert small.total == small.steady + small.transient + small.workspace + small.runtime
    assert small.weights == 16_060_522_496
    double = on_cuda([trial(8, 4)] * 8)
    assert (double.adapters, double.optimiser) == (2 * small.adapters, 2 * small.optimiser)
    assert on_cuda([trial(8, 4)] * 4, max_length=256).activations == 2 * small.activations
    assert small.steady - small.weights == 4 * adapter_bytes(llama_8b(), trial(8, 4), ON_CUDA)
    rarely = on_cuda([trial(8, 4)] * 4, supervised=0.125)
    assert rarely.logits < small.logits
    assert rarely.activations == small.activations


def test_recomputation_saves_what_it_says() -> None:
    """Per token of an 8B Llama: norms' float32 copies and activated gates go, the residual stream comes."""
    kept = on_cuda([trial(8, 32)], execution=replace(ON_CUDA, recompute=False)).activations
    saved = on_cuda([trial(8, 32)]).activations
    assert (kept - saved) / 4096 == 4 * 65 * 4096 + 2 * 32 * 14336 - 2 * 2 * 32 * 4096


def test_a_rank_pattern_counts_each_layer_with_its_own_rank() -> None:
    model = llama_8b()
    name, inputs, outputs = model.targets[0]
    patterned = replace(trial(8), rank_pattern=((name, 24),))
    assert adapter_bytes(model, patterned, ON_CPU_PADDED) - adapter_bytes(
        model, trial(8), ON_CPU_PADDED
    ) == 16 * 16 * (inputs + outputs)
    copied = adapter_bytes(model, patterned, ON_CUDA) - adapter_bytes(model, trial(8), ON_CUDA)
    assert copied == 18 * 16 * (inputs + outputs), "a bfloat16 copy of the weights"


def test_four_bit_bases_hold_their_linear_layers_in_nf4() -> None:
    """QLoRA's figure: 4.127 bits per parameter of the linear layers; embeddings, head and norms stay."""
    assert pytest.approx(4.127, abs=0.001) == 8 * NF4_BYTES
    model = llama_8b()
    linear = sum(inputs * outputs for _, inputs, outputs in model.targets)
    rest = 2 * 128256 * 4096 + 65 * 4096
    assert linear + rest == model.parameters
    largest = 4096 * 14336
    four_bit = replace(model, packed_parameters=linear, largest_packed=largest)
    assert weight_bytes(four_bit) == round(linear * NF4_BYTES + 2 * rest)
    assert weight_bytes(replace(four_bit, doubly_packed=False)) == round(linear * 4.5 / 8 + 2 * rest)
    packed, whole = on_cuda([trial(8, 4)], four_bit), on_cuda([trial(8, 4)])
    assert packed.activations == whole.activations
    # a layer is unpacked to be used, its scales before it
    assert packed.workspace - whole.workspace == 2 * largest + 4 * largest / 64


def test_micro_batches_bound_what_is_in_flight() -> None:
    pack = [trial(4, 16)] * 8
    assert tokens_in_flight(pack, 100, 2048, ON_CPU_PADDED) == 2048
    assert tokens_in_flight(pack, 3000, 2048, ON_CPU_PADDED) == 3000  # one row always goes in
    assert tokens_in_flight([trial(4, 2)], 100, 2048, ON_CPU_PADDED) == 200
    # flat: 12,800 tokens are 5 micro-batches of 2,560 tokens and at most a row more, filled up to sixteenths of 4,096
    assert tokens_in_flight(pack, 100, 3000, ON_CUDA, recorded=16384) == 2816
    assert tokens_in_flight(pack, 100, 3000, ON_CUDA) == 2688  # to 128 where nothing is recorded
    assert tokens_in_flight([trial(4, 2)], 100, 2048, ON_CUDA) == 256
    bounded = [on_cuda([trial(4, b)], max_length=64, micro_batch_tokens=2048) for b in (32, 256)]
    assert bounded[0].activations <= bounded[1].activations <= 1.01 * bounded[0].activations


def test_verdicts_turn_at_eight_per_cent_below_the_limit() -> None:
    nothing = dict.fromkeys(MemoryEstimate.__dataclass_fields__, 0)
    estimate = MemoryEstimate(**nothing | {"weights": 50, "optimiser": 30, "activations": 12})
    assert [estimate.verdict(limit) for limit in (91, 92, 99, 100)] == [
        "does not fit",
        "tight",
        "tight",
        "fits",
    ]
    assert [estimate.fits(limit) for limit in (99, 100)] == [False, True]
