"""How many layers compute their activations again: what is asked for, what it takes to fit, what is fastest."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from loratune.costs.execution import ON_CUDA
from loratune.costs.layers_again import layers_recomputed
from loratune.costs.limits import Limits
from loratune.costs.packing import Admission
from loratune.costs.planner import Planner
from loratune.costs.step_time import StepTime
from loratune.errors import InputError
from loratune.model.profile import profile_of
from loratune.values import HyperParameters, ModelProfile, Trial
from tensors import tensor_bytes

GIB = 2**30
ONE = HyperParameters(r=16, lora_alpha=32, learning_rate=1e-3, batch_size=1)


@cache
def llama_8b() -> ModelProfile:
    """Shapes of Llama-3.1-8B, built on the meta device."""
    config = LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, dtype="bfloat16",
    )  # fmt: skip
    with torch.device("meta"):
        return profile_of(LlamaForCausalLM._from_config(config, dtype=torch.bfloat16), "llama-8b")


def limits(device: float, length: int = 16384, **changes: Any) -> Limits:
    facts = {
        "max_length": length,
        "micro_batch_tokens": length,
        "supervised": 0.1,
        "recompute": None,
    } | changes
    return Limits(model=llama_8b(), execution=ON_CUDA, device_bytes=round(device * GIB), **facts)


@pytest.mark.parametrize(
    ("text", "layers"), [("auto", None), ("none", 0), ("all", 32), ("0", 0), ("20", 20), ("32", 32)]
)
def test_what_is_asked_for(text: str, layers: int | None) -> None:
    assert layers_recomputed(text, 32) == layers


@pytest.mark.parametrize("text", ["33", "-1", "1.5", "some", ""])
def test_what_no_model_has_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--recompute must be auto, none, all or 0 to 32"):
        layers_recomputed(text, 32)


def test_as_few_layers_as_it_takes() -> None:
    """One less does not fit; with room enough it is none, with too little it is all."""
    subject = limits(45)
    layers = subject.recomputed_when_fullest([ONE] * 2)
    assert 0 < layers < 32
    assert subject.fits([ONE] * 2)
    assert not replace(subject, recompute=layers - 1).fits([ONE] * 2)
    assert limits(140).recomputed_when_fullest([ONE] * 2) == 0
    assert limits(20).recomputed_when_fullest([ONE] * 2) == 32


def test_the_number_is_of_the_micro_batch_at_hand() -> None:
    """Short micro-batches of the same pack keep everything."""
    subject = limits(45)
    numbers = [subject.recomputed_in([ONE] * 2, tokens) for tokens in (1024, 4096, 8192, 16384)]
    assert numbers == sorted(numbers)
    assert numbers[0] == 0
    assert numbers[-1] == subject.recomputed_when_fullest([ONE] * 2)


def test_a_token_in_flight_takes_a_quarter_at_most() -> None:
    """All activations kept, measured on an H200: 86 GiB with two trials of 16,384 tokens."""
    kept, again = (replace(limits(0), recompute=n).fullest([ONE] * 2) for n in (0, 32))
    assert 84 * GIB < tensor_bytes(kept) < 89 * GIB
    held = kept.steady + kept.workspace
    assert tensor_bytes(again) - held < (tensor_bytes(kept) - held) / 4


def test_micro_batches_are_no_larger_than_is_fast() -> None:
    """A larger one would have more layers computed again than its launches save."""
    subject = limits(60, 512)
    tokens = subject.fastest_micro_batch([ONE] * 4, 65536)
    kept = replace(subject, recompute=0).largest_micro_batch([ONE] * 4, 65536)
    assert kept <= tokens < subject.largest_micro_batch([ONE] * 4, 65536)
    assert limits(24, 8192).fastest_micro_batch([ONE], 65536) in (0, 8192)


def test_trials_beside_each_other_fit_with_layers_computed_again() -> None:
    """More than fit with all activations kept where launching is what takes time; else no more than that."""
    subject = limits(36, 2048)
    trials = [Trial(hyper_parameters=ONE, seed=seed) for seed in range(16)]

    def planner(points: tuple[tuple[float, float], ...]) -> Planner:
        times = StepTime(points=points, micro_batch_tokens=2048)
        return Planner(limits=subject, times=times, rows=100, tokens=100 * 128, slots=16)

    least = subject.recomputed_when_fullest([ONE])
    kept = replace(subject, recompute=least).room([ONE] * 16) // subject.adapter_bytes(ONE)
    for points, more in ((((128, 1.0), (2048, 1.05)), True), (((128, 0.1), (2048, 1.6)), False)):
        [plan] = planner(points).plan(trials).parts
        admission = Admission(
            [subject.adapter_bytes(ONE)] * 16, plan.order, slots=plan.slots, room=plan.memory
        )
        live = 0
        while admission.next() is not None:
            live += 1
        assert subject.estimate([ONE] * live, step_tokens=2048).fits(subject.device_bytes)
        assert (live > kept) == more
