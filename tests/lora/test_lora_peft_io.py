"""PEFT folders: PEFT loads them without a warning and gives our engine's logits."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from engine_fixture import engine, tiny_family, trial
from loratune.engine.selfcheck import random_table
from loratune.errors import ModelError
from loratune.lora.layout import Adapter, find_targets
from loratune.lora.packed import PackedAdapters
from loratune.lora.peft_io import load_adapter, save_adapter
from loratune.lora.segments import PackMember, Segment
from loratune.model.base import BaseModel
from loratune.values import ALL_LINEAR

CPU = torch.device("cpu")


def trained(base: BaseModel, target_modules: tuple[str, ...], patterned: bool = False) -> Adapter:
    """An adapter after two steps, so that B is not zero."""
    names = [target.name for target in find_targets(base.profile.targets, target_modules)]
    pattern = tuple((name, 1 + i % 5) for i, name in enumerate(names) if i % 5 != 3) if patterned else ()
    slot = engine(base, random_table(base.profile.vocabulary)).slot(
        trial(target_modules=target_modules, warmup_ratio=0.0, lora_alpha=6, rank_pattern=pattern)
    )
    with engine(base, random_table(base.profile.vocabulary)).attached() as step:
        step([slot])
        step([slot])
    return slot.adapter


@pytest.mark.parametrize(
    ("family", "target_modules"),
    [
        ("llama", ALL_LINEAR),
        ("llama", ("q_proj", "v_proj")),
        ("llama", ("model.layers.1.mlp.up_proj", "k_proj")),
        ("gpt2", ALL_LINEAR),
        ("gpt2", ("attn.c_proj",)),
    ],
)
@pytest.mark.parametrize("patterned", [False, True])
def test_peft_gives_our_logits(
    family: str, target_modules: tuple[str, ...], patterned: bool, tmp_path: Path
) -> None:
    base = tiny_family(family, torch.float32)
    adapter = trained(base, target_modules, patterned)
    save_adapter(adapter, tmp_path / "adapter", base.model, base_name="tiny")
    tokens = torch.arange(40).view(4, 10)
    packed = PackedAdapters(base.model, [name for name, _, _ in base.profile.targets])
    segment = Segment(member=PackMember(adapter, trainable=False), start=0, stop=4 * 10)
    with torch.no_grad():
        bare = base.model(input_ids=tokens).logits
        with packed.attached(), packed.route([segment], 4 * 10):
            ours = base.model(input_ids=tokens, use_cache=False).logits
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*missing adapter keys.*")
            model = PeftModel.from_pretrained(base.model, tmp_path / "adapter")
        theirs = model(input_ids=tokens).logits
    scale = theirs.abs().max()
    assert (ours - theirs).abs().max() <= 1e-5 * scale
    assert (bare - theirs).abs().max() > 1e-3 * scale, "the adapter changed nothing: the test shows nothing"
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"
    assert config["fan_in_fan_out"] is (family == "gpt2")
    assert config["r"] == 4
    assert config["lora_alpha"] == 6
    pattern = config["rank_pattern"]
    assert bool(pattern) is patterned
    assert config["alpha_pattern"] == {name: 1.5 * r for name, r in pattern.items()}


def test_what_was_saved_is_read_back_and_replaces_an_older_one(tmp_path: Path) -> None:
    base = tiny_family("llama", torch.float32)
    folder = tmp_path / "adapter"
    for names, patterned in ((ALL_LINEAR, False), (ALL_LINEAR, True), (("o_proj",), False)):
        adapter = trained(base, names, patterned)
        save_adapter(adapter, folder, base.model)
        targets = find_targets(base.profile.targets, names)
        again = load_adapter(folder, adapter.hyper_parameters, targets, device=CPU)
        assert torch.equal(again.weights, adapter.weights)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_wrong_folders_are_named(tmp_path: Path) -> None:
    base = tiny_family("llama", torch.float32)
    adapter = trained(base, ("o_proj",))
    targets = adapter.layout.targets
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors"):
        load_adapter(tmp_path, adapter.hyper_parameters, targets, device=CPU)
    save_adapter(adapter, tmp_path / "a", base.model)
    with pytest.raises(ModelError, match=r"shape \(5, 32\), found shape \(4, 32\)"):
        load_adapter(tmp_path / "a", trial(r=5).hyper_parameters, targets, device=CPU)
    with pytest.raises(ModelError, match="found also"):
        load_adapter(tmp_path / "a", adapter.hyper_parameters, targets[:1], device=CPU)
