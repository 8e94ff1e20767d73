"""Model folders that are damaged or made by an enemy: one sentence, before anything is loaded or run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from loratune.errors import ModelError
from loratune.model.base import load_model
from loratune.model.digest import tokenizer_digest, weights_digest
from loratune.model.profile import profile_from_config
from loratune.model.source import Source, locate
from loratune.model.tokenizer import load_tokenizer
from tiny import save_tiny_model


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def model(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "model"))


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    edit(values)
    path.write_text(json.dumps(values), encoding="utf-8")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "architectures no list": ({"architectures": 1}, "must be a list of names, got 1;"),
    "architectures of numbers": ({"architectures": [1]}, "architectures"),
    "model_type no name": ({"model_type": ["llama"]}, "model_type"),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers"),
    "a billion layers": ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
    "a size of 400 digits": ({"hidden_size": 10**400}, "hidden_size"),
    "negative heads": ({"num_attention_heads": -4}, "num_attention_heads"),
    "a size in words": ({"vocab_size": "many"}, "vocab_size"),
    "a true size": ({"intermediate_size": True}, "intermediate_size"),
    "another base of angles": ({"rope_parameters": [1]}, "config"),
    "a kernel of the hub": ({"attn_implementation": "someone/kernel"}, "code from elsewhere"),
    "a kernel of the hub in a part": ({"text_config": {"_attn_implementation": {"": "flash|a/b:f"}}}, "elsewhere"),
    "experts of the hub": ({"experts_implementation": "someone/experts"}, "code from elsewhere"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_configuration_is_one_sentence(case: str, model: Path) -> None:
    values, says = WRONG[case]
    change(model / "config.json", lambda config: config.update(values))
    for read in (profile_from_config, load_tokenizer):
        with pytest.raises(ModelError, match=says) as caught:
            read(str(model))
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600


INDEXES: dict[str, Any] = {
    "a pickle": {"weight_map": {"a": "pytorch_model.bin"}},
    "a file elsewhere": {"weight_map": {"a": "../other/model.safetensors"}},
    "a number": {"weight_map": {"a": 5}},
    "a list": {"weight_map": ["a"]},
    "nothing": {},
}


@pytest.mark.parametrize("case", INDEXES)
def test_an_index_names_safetensors_beside_it(case: str, model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"code")
    (model / "model.safetensors.index.json").write_text(json.dumps(INDEXES[case]))
    with pytest.raises(ModelError, match=r"index\.json"):
        locate(str(model))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused(model: Path, number: float) -> None:
    tensors = load_file(model / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name][3, 5] = number
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"{name} holds NaN or infinity"):
        load_model(str(model), dtype="float32", device="cpu")


def test_large_weights_are_numbers(model: Path) -> None:
    """Their sum is not finite, they are."""
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], 3e38)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    load_model(str(model), dtype="float32", device="cpu")


def test_a_panic_of_the_tokenizer_is_one_sentence(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """An empty pattern that is replaced: loads, and breaks off at the first text."""
    change(
        model / "tokenizer.json",
        lambda values: values.update(
            normalizer={"type": "Replace", "pattern": {"String": ""}, "content": "xx"}
        ),
    )
    with pytest.raises(ModelError, match="tokenizer"):
        load_tokenizer(str(model))
    assert "panicked" not in capfd.readouterr().err


def test_whatever_makes_other_tokens_has_another_digest(model: Path) -> None:
    def digest() -> str:
        return tokenizer_digest(locate(str(model)))

    found = [digest()]
    assert digest() == found[0]

    def swap(values: dict[str, Any]) -> None:
        vocabulary = values["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]

    change(model / "tokenizer.json", swap)
    found.append(digest())
    change(model / "tokenizer_config.json", lambda values: values.update(chat_template="{{ messages }}"))
    found.append(digest())
    (model / "chat_template.jinja").write_text("{{ messages[0] }}")
    found.append(digest())
    elsewhere = model.parent / "templates"
    elsewhere.mkdir()
    (elsewhere / "tool.jinja").write_text("{{ tools }}")
    (model / "additional_chat_templates").symlink_to(elsewhere)  # as the hub's cache links files
    found.append(digest())
    (elsewhere / "tool.jinja").write_text("{{ tools[0] }}")
    found.append(digest())
    assert len(set(found)) == 6


def test_every_tensor_is_in_the_digest_of_the_weights(model: Path) -> None:
    file, source = model / "model.safetensors", locate(str(model))
    before = weights_digest(source), weights_digest(source, every_byte=True)
    assert before == (weights_digest(source), weights_digest(source, every_byte=True))
    tensors = load_file(file)
    for name in tensors:
        changed = {**tensors, name: tensors[name].clone()}
        changed[name].view(-1)[0] += 1
        save_file(changed, file, metadata={"format": "pt"})
        assert weights_digest(source) != before[0], name
        assert weights_digest(source, every_byte=True) != before[1], name


@pytest.mark.parametrize("place", [-(10**6), 10**15, 2**64, 10**400])
def test_a_header_that_points_elsewhere_does_not_stop_the_digest(tmp_path: Path, place: int) -> None:
    header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [place, place]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    assert len(weights_digest(Source(name="m", folder=tmp_path))) == 16


def test_the_middle_of_a_large_tensor_is_seen_by_the_whole_digest_only(tmp_path: Path) -> None:
    """What the sample costs and what it misses: 16 KiB of every 16 MiB are read."""
    file = tmp_path / "model.safetensors"
    save_file({"large": torch.zeros(9 * 2**20)}, file)
    (tmp_path / "config.json").write_text("{}")
    source = Source(name="m", folder=tmp_path)
    before = weights_digest(source), weights_digest(source, every_byte=True)
    content = bytearray(file.read_bytes())
    content[8 * 2**20] = 1
    file.write_bytes(content)
    assert weights_digest(source) == before[0]
    assert weights_digest(source, every_byte=True) != before[1]
    content[16 * 2**20 + 5000] = 1
    file.write_bytes(content)
    assert weights_digest(source) != before[0]
