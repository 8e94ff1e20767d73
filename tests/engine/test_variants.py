"""Variants of LoRA in one pack beside plain trials: each takes the course that PEFT gives it alone."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel

from engine_fixture import engine, tiny_family, tiny_llama, trial
from loratune.engine.machinery import choose_paths
from loratune.engine.reference import Course, train_alone
from loratune.engine.selfcheck import deviation, random_table, train_pack
from loratune.errors import HyperParameterError
from loratune.kernels.launch import KernelPath
from loratune.lora.packed import PackedAdapters
from loratune.lora.peft_io import load_adapter, save_adapter
from loratune.lora.segments import PackMember, Segment
from loratune.lora.spectrum import decompose
from loratune.model.base import BaseModel
from loratune.values import Trial

TABLE = random_table(97)
PATTERN = (("model.layers.0.self_attn.q_proj", 2),)
VARIANTS = {
    "rslora": {"use_rslora": True},
    "rslora with ranks of layers": {"use_rslora": True, "rank_pattern": PATTERN},
    "loraplus": {"loraplus_lr_ratio": 16.0, "learning_rate": 5e-4, "weight_decay": 0.1},
    "dora": {"use_dora": True, "learning_rate": 1e-2},
    "dora with all": {
        "use_dora": True,
        "use_rslora": True,
        "loraplus_lr_ratio": 4.0,
        "weight_decay": 0.1,
        "target_modules": ("q_proj", "down_proj"),
    },
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
    trials = [trial(0)]
    for changes in VARIANTS.values():
        named = {"rank_pattern", "target_modules"}  # names of modules that others have
        trials.append(trial(1, **{name: value for name, value in changes.items() if name not in named}))
    assert max(against_peft(tiny_family(family), trials, 3)) < 1e-9


def test_what_is_saved_gives_the_same_in_peft(tmp_path: Path) -> None:
    """After three steps, loaded without a warning: the same logits from the folder alone, and from a cut of it."""
    base = tiny_llama(torch.float32)
    packs = engine(base, TABLE)
    tokens = torch.arange(40).view(4, 10)
    packed = PackedAdapters(base.model, [name for name, _, _ in base.profile.targets])
    for number, changes in enumerate(VARIANTS.values()):
        ((slot, _),) = train_pack(packs, [trial(1, **changes)], 3)
        whole = decompose(slot.adapter)
        for adapter in (slot.adapter, whole.cut(whole.uniform(2))):
            folder = tmp_path / str(number)
            save_adapter(adapter, folder, base.model)
            again = load_adapter(
                folder, adapter.hyper_parameters, adapter.layout.targets, device=torch.device("cpu")
            )
            assert torch.equal(again.weights, adapter.weights)
            segment = Segment(member=PackMember(adapter, trainable=False), start=0, stop=40)
            with torch.no_grad(), warnings.catch_warnings():
                warnings.filterwarnings("error", message=".*missing adapter keys.*")
                with packed.attached(), packed.route([segment], 40):
                    ours = base.model(input_ids=tokens, use_cache=False).logits
                bare = base.model(input_ids=tokens).logits
                loaded = PeftModel.from_pretrained(base.model, folder)
                theirs = loaded(input_ids=tokens).logits
                loaded.unload()
            assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
            assert (bare - theirs).abs().max() > 1e-3 * theirs.abs().max(), "the adapter changed nothing"


def test_dora_with_dropout_is_refused() -> None:
    with pytest.raises(
        HyperParameterError, match="off where lora_dropout is not 0, got True; leave --use-dora out"
    ):
        trial(use_dora=True, lora_dropout=0.1)


def test_kernels_do_not_run_dora() -> None:
    assert choose_paths(tiny_llama(torch.float32), longest=24, dora=True).low_rank == KernelPath(
        False, "DoRA"
    )
