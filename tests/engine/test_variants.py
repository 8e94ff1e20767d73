"""Variants of LoRA in one pack beside plain trials: each takes the course that PEFT gives it alone."""

import numpy as np
import pytest

from engine_fixture import engine, tiny_family, tiny_llama, trial
from loratune.engine.reference import Course, train_alone
from loratune.engine.selfcheck import deviation, random_table, train_pack
from loratune.model.base import BaseModel
from loratune.values import Trial

TABLE = random_table(97)
PATTERN = (("model.layers.0.self_attn.q_proj", 2),)
VARIANTS = {
    "rslora": {"use_rslora": True},
    "rslora with ranks of layers": {"use_rslora": True, "rank_pattern": PATTERN},
    "loraplus": {"loraplus_lr_ratio": 16.0, "learning_rate": 5e-4, "weight_decay": 0.1},
    "loraplus with dropout": {"loraplus_lr_ratio": 4.0, "use_rslora": True, "lora_dropout": 0.2},
}


def against_peft(base: BaseModel, trials: list[Trial], steps: int) -> list[float]:
    """The larger deviation of losses and weights of each trial of one pack, the last of which enters late."""
    table = TABLE if base.profile.vocabulary == 97 else random_table(base.profile.vocabulary)
    packs, found = engine(base, table), []
    for slot, initial in train_pack(packs, trials, steps):
        targets = slot.adapter.layout.targets
        alone = train_alone(base.model, slot.trial, targets, table, packs.batches(slot.trial), steps=steps)
        course = Course(losses=np.array(slot.losses), weights=slot.adapter.weights)
        gap = deviation(course, alone, initial)
        found.append(max(gap.loss, gap.weights))
    return found


def test_all_of_them_in_one_pack_with_plain_neighbours() -> None:
    base = tiny_llama()
    trials = [trial(0), trial(1, r=8, lora_dropout=0.1)]
    trials += [trial(seed, epochs=2, **changes) for seed, changes in enumerate(VARIANTS.values(), 2)]
    assert max(against_peft(base, [*trials, trial(9)], 20)) < 1e-9


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_not_plain_lora(name: str) -> None:
    """The comparison above shows something: with plain LoRA's course it would fail."""
    packs = engine(tiny_llama(), TABLE)
    changes = VARIANTS[name]
    plain = {
        key: value
        for key, value in changes.items()
        if key in ("learning_rate", "weight_decay", "lora_dropout")
    }
    (ours, initial), (theirs, _) = train_pack(packs, [trial(1, **changes), trial(1, **plain)], 3)
    assert ours.losses[0] == pytest.approx(theirs.losses[0], rel=1e-12), "B is zero at first"
    if ours.adapter.weights.shape == theirs.adapter.weights.shape:
        assert (ours.adapter.weights - theirs.adapter.weights).norm() > 1e-3 * (
            theirs.adapter.weights - initial
        ).norm()
    assert abs(ours.losses[2] / theirs.losses[2] - 1) > 1e-6


@pytest.mark.parametrize("family", ["gpt2", "phi3"])
def test_other_architectures(family: str) -> None:
    trials = [
        trial(0),
        *(trial(1, **changes) for changes in VARIANTS.values() if "rank_pattern" not in changes),
    ]
    assert max(against_peft(tiny_family(family), trials, 3)) < 1e-9
