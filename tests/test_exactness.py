"""The exactness rule: a trial in a pack takes the course that plain PEFT and torch's AdamW give it alone."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from engine_fixture import engine, tiny_family, tiny_llama, trial
from loratune.engine import slot as slot_module
from loratune.engine.reference import Course, train_alone
from loratune.engine.selfcheck import Deviation, deviation, mixed_trials, random_table, selfcheck, train_pack
from loratune.engine.slot import Slot
from loratune.model.base import BaseModel
from loratune.values import Trial

STEPS = 50
TABLE = random_table(97)


def against_peft(base: BaseModel, trials: Sequence[Trial], steps: int) -> list[Deviation]:
    """Deviation of every trial of one pack (the last enters at step 2) from PEFT alone."""
    table = TABLE if base.profile.vocabulary == 97 else random_table(base.profile.vocabulary)
    packs = engine(base, table)
    found = []
    for slot, initial in train_pack(packs, trials, steps):
        targets = slot.adapter.layout.targets
        batches = packs.batches(slot.trial)
        alone = train_alone(base.model, slot.trial, targets, table, batches, steps=steps)
        course = Course(losses=np.array(slot.losses), weights=slot.adapter.weights)
        assert len(alone.losses) == len(course.losses) == min(steps, len(batches))
        found.append(deviation(course, alone, initial))
    return found


def worst(deviations: Sequence[Deviation]) -> float:
    return max(max(each.loss, each.weights) for each in deviations)


def test_mixed_pack_in_float64() -> None:
    """Six trials that differ in everything, micro-batches that mix and cut them, one entering mid-way."""
    trials = [
        replace(
            each, hyper_parameters=replace(each.hyper_parameters, epochs=each.hyper_parameters.epochs * 3)
        )
        for each in mixed_trials(tiny_llama())
    ]
    assert worst(against_peft(tiny_llama(), trials, STEPS)) < 1e-9


@pytest.mark.parametrize(
    "family",
    ["gpt2", "qwen2", "qwen3", "gemma", "gemma3_text", "phi", "phi3", "mistral", "gpt_neox"],
)
def test_other_architectures_in_float64(family: str) -> None:
    """Few steps; gemma3_text has a sliding window shorter than the rows."""
    base = tiny_family(family)
    trials = mixed_trials(base)
    assert worst(against_peft(base, (trials[1], trials[3], trials[5]), 3)) < 1e-9


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_mixtures_of_experts_in_float32(family: str) -> None:
    """Adapters on the attention only; the experts' grouped products do not exist in float64."""
    base = tiny_family(family, torch.float32)
    found = against_peft(base, mixed_trials(base)[1:4], 3)
    assert max(each.loss for each in found) < 1e-5
    assert max(each.norm for each in found) < 1e-4


def test_float32_within_three_times_the_noise_of_peft() -> None:
    check = selfcheck(tiny_llama(torch.float32), TABLE, steps=12)
    assert check.holds, check
    assert max(each.pack.loss for each in check.trials) < 1e-5
    assert any(each.noise.loss > 0 for each in check.trials), "no noise: the comparison shows nothing"


def test_selfcheck_leaves_the_model_as_it_was() -> None:
    base = tiny_llama(torch.float32)
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    modules = [type(module) for module in base.model.modules()]
    state = torch.get_rng_state()
    selfcheck(base, TABLE, steps=1, trials=mixed_trials(base)[:2])
    after = base.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [type(module) for module in base.model.modules()] == modules
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert not any(module._forward_hooks for module in base.model.modules())
    assert not hasattr(base.model, "peft_config")
    assert torch.equal(torch.get_rng_state(), state)


def late_schedule(step: int, *, warmup: int, total: int) -> float:
    return SCHEDULE(step + 1, warmup=warmup, total=total)


SCHEDULE = slot_module.schedule


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("MAX_GRADIENT_NORM", 1e9),
        ("schedule", late_schedule),
        ("optimiser", lambda weights, _: torch.optim.AdamW([weights], eps=1e-6, fused=True)),
        ("row_keys", lambda seed, step, rows: slot_keys(seed, step + 1, rows)),
    ],
)
def test_a_wrong_engine_is_found_out(name: str, wrong: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison would notice no clipping, a late schedule, another eps or decay, other masks."""
    base = tiny_llama()
    packs = engine(base, TABLE)
    subject = mixed_trials(base)[3]
    batches = packs.batches(subject)
    with monkeypatch.context() as patch:
        patch.setattr(slot_module, name, wrong)
        ((slot, initial),) = train_pack(packs, [subject], 6)
    alone = train_alone(base.model, subject, slot.adapter.layout.targets, TABLE, batches, steps=6)
    course = Course(losses=np.array(slot.losses), weights=slot.adapter.weights)
    assert deviation(course, alone, initial).weights > 1e-4


slot_keys = slot_module.row_keys


def courses(slots: Sequence[Slot], *, steps: int, max_tokens: int, poison: int | None = None) -> list[Slot]:
    """Train until the end; the slot numbered `poison` gets NaN weights after its first step."""
    packs = engine(tiny_llama(torch.float32), TABLE, max_tokens_per_micro_batch=max_tokens)
    with packs.attached() as step:
        for now in range(steps):
            if poison is not None and now == 1:
                slots[poison].adapter.weights.fill_(float("nan"))
            step([slot for slot in slots if not slot.done])
    return list(slots)


def three_slots() -> list[Slot]:
    packs = engine(tiny_llama(torch.float32), TABLE)
    return [
        packs.slot(trial(1, r=4)),
        packs.slot(trial(2, r=8, lora_dropout=0.2)),
        packs.slot(trial(3, r=2, lora_dropout=0.1, batch_size=6)),
    ]


def test_nan_neighbour_leaves_the_others_on_their_course() -> None:
    """The step in which it fails has the same shapes: bitwise. Then it is gone: rounding."""
    for steps in (3, 8):
        clean = courses(three_slots(), steps=steps, max_tokens=128)
        poisoned = courses(three_slots(), steps=steps, max_tokens=128, poison=1)
        assert "loss nan" in poisoned[1].failure
        assert poisoned[1].step == 3, "two steps that are not finite; then the failed trial leaves"
        assert poisoned[1].adapter.weights.isnan().all(), "its weights are left as they were"
        for with_it, without in zip(poisoned[::2], clean[::2], strict=True):
            assert not with_it.failure
            if steps == 3:
                assert with_it.losses == without.losses
                assert torch.equal(with_it.adapter.weights, without.adapter.weights)
            np.testing.assert_allclose(with_it.losses, without.losses, rtol=1e-5)
            torch.testing.assert_close(
                with_it.adapter.weights.norm(), without.adapter.weights.norm(), rtol=1e-5, atol=0
            )


def test_same_course_alone_and_in_any_order() -> None:
    """Dropout included: the masks do not depend on company, order or cuts."""
    packed = courses(three_slots(), steps=6, max_tokens=64)
    turned = courses(three_slots()[::-1], steps=6, max_tokens=4096)[::-1]
    for i, (first, second) in enumerate(zip(packed, turned, strict=True)):
        alone = courses([three_slots()[i]], steps=6, max_tokens=256)[0]
        np.testing.assert_allclose(first.losses, second.losses, rtol=1e-5)
        np.testing.assert_allclose(first.losses, alone.losses, rtol=1e-5)


def test_schedule_is_that_of_transformers() -> None:
    from transformers import get_linear_schedule_with_warmup

    for warmup, total in ((0, 5), (3, 10), (10, 10)):
        optimiser = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        scheduler = get_linear_schedule_with_warmup(optimiser, warmup, total)
        for step in range(total):
            assert slot_module.schedule(step, warmup=warmup, total=total) == scheduler.get_last_lr()[0]
            optimiser.step()
            scheduler.step()
