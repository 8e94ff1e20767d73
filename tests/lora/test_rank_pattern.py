"""A rank for each module: the same course as PEFT's in a mixed pack, the same identity before and after a file."""

import json
from dataclasses import replace

import numpy as np
import pytest

from engine_fixture import engine, tiny_llama, trial
from loratune.costs.memory import adapter_parameters
from loratune.engine.reference import Course, train_alone
from loratune.engine.selfcheck import deviation, mixed_trials, random_table, train_pack
from loratune.errors import HyperParameterError
from loratune.lora.layout import AdapterLayout
from loratune.values import HyperParameters, Trial
from loratune.values.plain import to_plain

SETTING = HyperParameters(r=4, lora_alpha=8, learning_rate=3e-3, batch_size=4)


def patterned(pattern: dict[str, int]) -> HyperParameters:
    return replace(SETTING, rank_pattern=tuple(pattern.items()))


def test_trains_as_peft_beside_trials_of_one_rank() -> None:
    base, table = tiny_llama(), random_table(97)
    names = [name for name, _, _ in base.profile.targets]
    pattern = {name: (1, 9, 2, 16)[i % 4] for i, name in enumerate(names) if i % 5}
    dropout = trial(seed=3, rank_pattern=tuple(pattern.items()), lora_dropout=0.2, warmup_ratio=0.0)
    part = trial(
        seed=4, target_modules=("q_proj", "up_proj"), rank_pattern=((names[0], 7),), warmup_ratio=0.0
    )
    packs = engine(base, table)
    for slot, initial in train_pack(packs, (dropout, *mixed_trials(base)[:3], part), 8):
        batches = packs.batches(slot.trial)
        alone = train_alone(base.model, slot.trial, slot.adapter.layout.targets, table, batches, steps=8)
        found = deviation(Course(losses=np.array(slot.losses), weights=slot.adapter.weights), alone, initial)
        assert max(found.loss, found.weights) < 1e-9


def test_layout_and_parameters() -> None:
    base = tiny_llama()
    (first, *_), setting = base.profile.targets, patterned({base.profile.targets[0][0]: 11})
    trial_layout = engine(base, random_table(97)).initial(Trial(hyper_parameters=setting)).layout
    assert trial_layout.r == 11
    assert trial_layout.ranks == (11, *[4] * (len(base.profile.targets) - 1))
    uniform = AdapterLayout(targets=trial_layout.targets, ranks=(4,) * len(trial_layout.targets))
    assert trial_layout.size - uniform.size == 7 * (first[1] + first[2])
    assert adapter_parameters(base.profile, setting) == trial_layout.size


def test_alpha_is_in_proportion() -> None:
    setting = patterned({"a.q": 6, "a.v": 1})
    assert setting.scaling == 2
    assert setting.alpha_pattern == {"a.q": 12, "a.v": 2}
    assert setting.ranks_of(["a.v", "a.k", "a.q"]) == (1, 4, 6)


def test_identity_and_json() -> None:
    one, other, none = (Trial(hyper_parameters=patterned(p)) for p in ({"a": 6}, {"a": 5}, {}))
    assert len({one.key, other.key, none.key}) == 3
    assert none.key == Trial(hyper_parameters=SETTING).key
    assert "rank_pattern" not in to_plain(none)["hyper_parameters"]
    again = Trial.from_dict(json.loads(json.dumps(to_plain(one))))
    assert again == one
    assert again.key == one.key


def test_a_rank_of_zero_is_no_rank() -> None:
    with pytest.raises(HyperParameterError, match="rank_pattern"):
        patterned({"a": 0})
