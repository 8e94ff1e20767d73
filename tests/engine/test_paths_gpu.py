"""The fast paths on a CUDA device, each against the reference: Triton, flat rows, compiled layers, CUDA graphs."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from engine_fixture import REFERENCE, trial
from loratune.engine.machinery import choose_paths
from loratune.engine.pack import PackEngine
from loratune.engine.selfcheck import random_table, selfcheck
from loratune.model.base import BaseModel
from loratune.model.device import pick_device
from loratune.model.profile import profile_of

pytestmark = pytest.mark.gpu


def small(dtype: torch.dtype, device: str = "cuda") -> BaseModel:
    config = LlamaConfig(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).to(device).eval().requires_grad_(False)
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


def losses_on(device: str) -> list[list[float]]:
    """Of two trials, to their ends."""
    table = random_table(512)
    base = small(torch.bfloat16, str(pick_device(device)))
    packs = PackEngine(base=base, train=table, validation=table, study_seed=0, cost=lambda _: 1.0)
    assert packs.chosen_paths.compiled
    slots = packs.slots([trial(0), trial(1, r=16)])
    with packs.attached() as step:
        while not slots[0].done:
            step(slots)
    return [list(slot.losses) for slot in slots]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU only")
@pytest.mark.parametrize("recorded_elsewhere", [False, True])
def test_everything_runs_on_the_gpu_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, recorded_elsewhere: bool
) -> None:
    """Kernels and recorded graphs go to the current device, which is another one at first.

    A recording that would stay empty, as on another device's stream, is not used.
    """
    first, last = "cuda:0", f"cuda:{torch.cuda.device_count() - 1}"
    try:
        expected = losses_on(first)
        if recorded_elsewhere:
            elsewhere = torch.cuda.Stream(torch.device(first))
            monkeypatch.setattr("loratune.engine.graphs._recording_stream", lambda device: elsewhere)
        found = losses_on(last)
        # not to the bit: layers are compiled for each device anew, and the fastest sums there need not be the same
        for ours, theirs in zip(found, expected, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-3)
    finally:
        torch.cuda.set_device(first)


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
