"""Base models in 4 bits: packed while they are read, or read packed; what cannot be is refused in one sentence."""

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from safetensors.torch import load_file, save_file
from torch import nn

from families import FAMILIES, save_family
from loratune.errors import ModelError
from loratune.model.base import BaseModel, load_model
from loratune.model.four_bit import PackedLinear, unpacked
from loratune.model.nf4 import packed_layers
from loratune.model.profile import profile_from_config
from nf4_fixture import HIDDEN, by_bitsandbytes

pytest_plugins = ["nf4_fixture"]


def weight(layer: nn.Module) -> torch.Tensor:
    size = layer.out_features, layer.in_features
    return unpacked(layer.packed, size, layer.weight.blocksize, torch.float32)


def test_linear_layers_but_the_head_are_packed(packed: BaseModel) -> None:
    names = {name for name, _, _ in packed.profile.targets}
    assert set(packed_layers(packed.model)) == names
    assert packed.weight_format == "nf4"
    assert packed.profile.packed_parameters == sum(i * o for _, i, o in packed.profile.targets)
    assert packed.profile.largest_packed == HIDDEN * 2 * HIDDEN
    plain = {name: p for name, p in packed.model.named_parameters() if p.is_floating_point()}
    assert {name.split(".")[-2].rpartition("_")[2] for name in plain} == {"tokens", "layernorm", "norm"}
    assert not any(parameter.requires_grad for parameter in packed.model.parameters())


def test_numbers_are_those_of_bitsandbytes(packed: BaseModel, plain_folder: Path) -> None:
    """Bit for bit; a Gaussian weight is 9 % off (QLoRA, and measured)."""
    other = by_bitsandbytes(plain_folder, torch.float32)
    stored = load_file(plain_folder / "model.safetensors")
    for name in packed_layers(packed.model):
        theirs = other.get_submodule(name).weight
        found = weight(packed.model.get_submodule(name))
        assert torch.equal(found, dequantize_4bit(theirs.data, theirs.quant_state))
        original = stored[f"{name}.weight"]
        assert float((found - original).norm() / original.norm()) == pytest.approx(0.092, abs=0.01)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_profile_of_a_config_is_that_of_the_loaded_model(family: str, tmp_path: Path) -> None:
    """GPT-2's transposed layers, tied heads, a router that stays plain."""
    folder = str(save_family(family, tmp_path))
    base = load_model(folder, dtype="nf4", device="cpu")
    assert base.profile == profile_from_config(folder, dtype="nf4", device="cpu")
    plain = load_model(folder, dtype="float32", device="cpu")
    assert replace(base.profile, packed_parameters=0, largest_packed=0) == plain.profile


def test_a_folder_in_nf4_is_read_as_it_is(packed: BaseModel, tmp_path: Path) -> None:
    packed.model.save_pretrained(tmp_path)
    again = load_model(str(tmp_path), device="cpu")
    assert again.weight_format == "nf4"
    assert again.profile == replace(packed.profile, name=str(tmp_path))
    assert again.profile == profile_from_config(str(tmp_path), device="cpu")
    tokens = torch.arange(12).reshape(2, 6)
    assert torch.equal(again.model(input_ids=tokens).logits, packed.model(input_ids=tokens).logits)
    with pytest.raises(ModelError, match=r"is in 4 bits, so that --dtype must be auto or nf4, got float32"):
        load_model(str(tmp_path), dtype="float32", device="cpu")


@pytest.mark.parametrize(("double", "storage"), [(False, torch.uint8), (True, torch.bfloat16)])
def test_folders_that_others_have_packed(
    double: bool, storage: torch.dtype, plain_folder: Path, tmp_path: Path
) -> None:
    """With plain scales, or kept under another type of numbers."""
    other = by_bitsandbytes(plain_folder, torch.float32, double=double, storage=storage)
    other.save_pretrained(tmp_path)
    base = load_model(str(tmp_path), device="cpu")
    assert base.profile.doubly_packed == double
    assert base.profile == profile_from_config(str(tmp_path), device="cpu")
    tokens = torch.arange(12).reshape(2, 6)
    torch.testing.assert_close(base.model(input_ids=tokens).logits, other(input_ids=tokens).logits)
    assert base.dtype == torch.float32
    assert {type(base.model.get_submodule(name)) for name in packed_layers(base.model)} == {PackedLinear}


def spoil(folder: Path, number: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = number
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_found_though_it_is_packed(
    number: float, plain_folder: Path, tmp_path: Path
) -> None:
    for path in plain_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    spoil(tmp_path, number)
    with pytest.raises(ModelError, match=r"layers.1.mlp.up_proj.weight holds NaN or infinity"):
        load_model(str(tmp_path), dtype="nf4", device="cpu")


def without_bitsandbytes(plain: Path, patch: pytest.MonkeyPatch) -> str:
    original = importlib.util.find_spec
    patch.setattr(
        "loratune.model.nf4.find_spec", lambda name: None if name == "bitsandbytes" else original(name)
    )
    return str(plain)


def gguf(plain: Path, patch: pytest.MonkeyPatch) -> str:
    path = plain.parent / "model.gguf"
    path.write_bytes(b"GGUF, not read")
    return str(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (without_bitsandbytes, r"bitsandbytes must be installed .*pip install 'bitsandbytes>=0.50'"),
        (gguf, r"--dtype nf4 needs a model in safetensors, got the .gguf file .*model.gguf"),
    ],
)
def test_what_cannot_be_packed(
    make: Callable[[Path, pytest.MonkeyPatch], str],
    message: str,
    plain_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ModelError, match=message) as refusal:
        load_model(make(plain_folder, monkeypatch), dtype="nf4", device="cpu")
    assert str(refusal.value).endswith(".")


def test_a_configuration_needs_no_bitsandbytes(plain_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = profile_from_config(without_bitsandbytes(plain_folder, monkeypatch), dtype="nf4", device="cpu")
    assert profile.packed_parameters
    assert json.loads((plain_folder / "config.json").read_text()).get("quantization_config") is None
