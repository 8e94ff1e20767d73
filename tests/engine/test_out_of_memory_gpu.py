"""Real out-of-memory errors on a CUDA device: a ballast leaves too little, and every trial ends as it would have.

They fill the device: run them alone, without `-n`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from engine_fixture import trial
from loratune.engine.loop import PackProgress
from loratune.engine.memory import Place, Shortage
from loratune.engine.pack import PackEngine
from loratune.engine.selfcheck import random_table
from loratune.lora.layout import Adapter
from loratune.model.base import BaseModel
from loratune.model.device import limit_memory
from loratune.model.profile import profile_of
from loratune.values import Trial, TrialResult

pytestmark = pytest.mark.gpu
MIB = 2**20
TABLE = random_table(32_000, rows=96, longest=500)
LOSSES = {torch.bfloat16: 2e-2, torch.float32: 1e-3}
"""How far half precision is from itself when its micro-batches are cut otherwise; the same for float32."""


def base(dtype: torch.dtype) -> BaseModel:
    """130 million parameters; an adapter of rank 256 holds 0.6 GB with its gradient and moments."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).cuda().eval().requires_grad_(False)
    return BaseModel(model=model, tokenizer=None, profile=profile_of(model, "middling"))


def ballast(leave: int) -> torch.Tensor:
    """All of the device's memory but `leave` bytes."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    return torch.empty(max(0, free - leave), dtype=torch.uint8, device="cuda")


def run(
    model: BaseModel,
    trials: list[Trial],
    slots: int,
    *,
    at_step: int = 0,
    leave: Callable[[], int] | None = None,
) -> tuple[dict[int, TrialResult], list[Shortage]]:
    """Results by seed; after `at_step` steps of the pack no more than `leave` bytes are free."""
    results: dict[int, TrialResult] = {}
    shortages: list[Shortage] = []
    held: list[torch.Tensor] = []
    waiting, steps = list(trials), iter(range(1, 10**6))
    engine = PackEngine(
        base=model, train=TABLE, validation=TABLE.take(range(24)), study_seed=0, cost=lambda _: 1.0,
        max_tokens_per_micro_batch=65536, on_shortage=shortages.append,
    )  # fmt: skip

    def keep(result: TrialResult, adapter: Adapter) -> None:
        assert result.trial.seed not in results, "a trial ends once"
        results[result.trial.seed] = result

    def fill(progress: PackProgress) -> None:
        if leave is not None and next(steps) == at_step:
            if engine._graphs is not None:
                engine._graphs.forget()  # else their memory, which is given back first, would do
            held.append(ballast(leave()))

    if leave is not None and at_step == 0:
        held.append(ballast(leave()))
    engine.run(lambda: waiting.pop(0) if waiting else None, slots=slots, on_result=keep, on_progress=fill)
    assert len(held) == (leave is not None)
    return results, shortages


def assert_alike(found: dict[int, TrialResult], expected: dict[int, TrialResult], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for seed, theirs in expected.items():
        ours = found[seed]
        assert (ours.state, ours.steps, ours.trained_tokens) == (
            theirs.state,
            theirs.steps,
            theirs.trained_tokens,
        )
        np.testing.assert_allclose(ours.step_nll, theirs.step_nll, rtol=tolerance)
        assert ours.nll == pytest.approx(theirs.nll, rel=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("at_step", [0, 2], ids=["from the start", "in the middle"])
def test_micro_batches_that_do_not_fit_are_halved(dtype: torch.dtype, at_step: int) -> None:
    """Room for the adapters and for a fraction of the activations: the fast paths, with graphs, and float32."""
    model = base(dtype)
    trials = [trial(seed, r=4 * (seed + 1), batch_size=16, epochs=1.0) for seed in range(4)]
    torch.cuda.reset_peak_memory_stats()
    expected, silence = run(model, trials, 3)
    assert not silence
    needed = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
    found, shortages = run(model, trials, 3, at_step=at_step, leave=lambda: needed // 4)
    assert Place.TRAINING in {shortage.place for shortage in shortages}
    assert shortages[0].needed > 0
    assert_alike(found, expected, LOSSES[dtype])
    torch.cuda.empty_cache()


@pytest.mark.parametrize("at_step", [0, 2], ids=["on entering", "in the middle"])
def test_a_pack_that_does_not_fit_is_split(at_step: int) -> None:
    """Four trials of 0.6 GB: on entering there is room for two, in the middle for none of their activations."""
    model = base(torch.bfloat16)
    trials = [trial(seed, r=256, batch_size=8, epochs=1.0, learning_rate=1e-4) for seed in range(4)]
    expected, silence = run(model, trials, 4)
    assert not silence
    room = 1700 * MIB if at_step == 0 else 8 * MIB
    found, shortages = run(model, trials, 4, at_step=at_step, leave=lambda: room)
    assert Place.PACK in {shortage.place for shortage in shortages}
    assert shortages[-1].now < 4
    assert_alike(found, expected, LOSSES[torch.bfloat16])
    torch.cuda.empty_cache()


def test_what_a_failed_step_held_is_given_back() -> None:
    """After a step that did not fit no activation is left."""
    model = base(torch.bfloat16)
    seen: dict[str, Any] = {}
    before = torch.cuda.memory_allocated()

    def keep(shortage: Shortage) -> None:
        seen.setdefault("held", torch.cuda.memory_allocated() - before)

    engine = PackEngine(
        base=model, train=TABLE, validation=TABLE, study_seed=0, cost=lambda _: 1.0,
        max_tokens_per_micro_batch=65536, on_shortage=keep,
    )  # fmt: skip
    slots = engine.slots([trial(0, r=8, batch_size=64)])
    own = sum(16 * slot.adapter.layout.size for slot in slots)
    heavy = ballast(300 * MIB)
    with engine.attached() as step:
        step(slots)
    assert heavy.numel() > 0
    assert seen["held"] - heavy.numel() - own < 64 * MIB


def test_what_the_user_allows_is_all_that_there_is() -> None:
    """A GiB of a card that has much more; afterwards everything again."""
    place = torch.device("cuda")
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved(place)
    limit_memory(place, held + 2**30)
    try:
        kept = torch.empty(2**29, dtype=torch.uint8, device=place)
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(2**30, dtype=torch.uint8, device=place)
    finally:
        limit_memory(place, None)
    assert torch.empty(2**30, dtype=torch.uint8, device=place).is_cuda
    del kept
