"""What a base in 4 bits holds between steps and at the peak of one, counted by the allocator, and its prediction."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.autograd.profiler import profile
from transformers import LlamaConfig, LlamaForCausalLM

from loratune.costs.execution import ON_CPU
from loratune.costs.memory import estimate_pack, weight_bytes
from loratune.engine.pack import PackEngine
from loratune.model.base import BaseModel, load_model
from loratune.model.nf4 import packed_layers
from loratune.values import Trial
from memory_fixture import LENGTH, table, trial
from tensors import tensor_bytes

VOCABULARY = 300


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """Wide layers and few of them: unpacked, one is as large as all of them packed."""
    folder = tmp_path_factory.mktemp("wide")
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return load_model(str(folder), dtype="nf4", device="cpu")


def test_the_weights_are_what_lives_of_them(base: BaseModel) -> None:
    """Packed numbers, scales, scales of scales and offsets; the codes of bytes, a KiB a layer, are not predicted."""
    plain = sum(each.nbytes for each in base.model.parameters() if each.is_floating_point())
    layers = [base.model.get_submodule(name) for name in packed_layers(base.model)]
    kept = [each for layer in layers for each in layer.packed if each is not None]
    codes = sum(layer.packed.outer_code.nbytes for layer in layers)
    assert weight_bytes(base.profile) == pytest.approx(
        plain + sum(each.nbytes for each in kept) - codes, rel=1e-4
    )
    assert codes == 1024 * len(layers)
    whole = replace(base.profile, packed_parameters=0)
    assert weight_bytes(base.profile) < 0.25 * weight_bytes(whole)


def highest(work: Callable[[], object]) -> int:
    """Most bytes that the allocator had given out at once during the work, beyond those before it."""
    with profile(profile_memory=True) as seen:
        work()
    live = peak = 0
    for event in seen.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


@pytest.mark.parametrize("micro_batch", [128, 10**6])
def test_the_peak_of_a_step_holds_one_unpacked_layer(base: BaseModel, micro_batch: int) -> None:
    rows = table(VOCABULARY, 4)
    pack = [trial(4, 4), trial(8, 4)]
    engine = PackEngine(
        base=base,
        train=rows,
        validation=rows.take(range(2)),
        study_seed=0,
        cost=lambda trial: 1.0,
        max_tokens_per_micro_batch=micro_batch,
        launch_tokens=10**9,
    )
    slots = [engine.slot(Trial(hyper_parameters=hp, seed=seed)) for seed, hp in enumerate(pack)]
    with engine.attached() as step:
        step(slots)
        found = highest(lambda: step(slots))
    estimate = estimate_pack(
        base.profile,
        pack,
        max_length=LENGTH,
        micro_batch_tokens=micro_batch,
        execution=ON_CPU,
        supervised=4 / LENGTH,
    )
    assert tensor_bytes(estimate) - estimate.steady == pytest.approx(found, rel=0.05)
