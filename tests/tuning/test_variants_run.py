"""Variants of LoRA through whole commands: compared, interrupted and resumed, written, refused."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import loratune
from loratune.costs import measuring
from loratune.costs.calibration import CALIBRATION
from loratune.errors import ModelError
from loratune.study.record import Study
from loratune.values import Stage
from tiny import animal_rows, save_tiny_model, write_jsonl


@pytest.fixture(scope="module", autouse=True)
def _short_calibration() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setattr(measuring, "SECONDS", 0.05)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("variants")
    data = write_jsonl(folder / "train.jsonl", animal_rows(60))
    return {"model": save_tiny_model(folder / "model"), "data": data, "dtype": "float32", "device": "cpu"}


def test_a_search_of_one_variant_that_compares_others(place: dict[str, Any], tmp_path: Path) -> None:
    """Every trial is rsLoRA, the last stage tries DoRA and LoRA+ on top; a run cut short goes on to the same end."""
    wishes: dict[str, Any] = {
        **place, "out": tmp_path / "run", "ranks": [2], "learning_rates": [1e-2], "batch_sizes": [8], "epochs": 1.0,
        "budget": "12x", "variants": ["rslora"], "tune_variants": ["dora", "loraplus"],
    }  # fmt: skip
    result = loratune.tune(**wishes)
    results = Study.load(result.directory).results()
    searched = [each.asked.hyper_parameters for each in results if each.asked.stage is not Stage.FINAL]
    assert all(each.use_rslora for each in searched)
    tried = {each.asked.hyper_parameters.variant for each in results if each.asked.stage is Stage.VARIANT}
    assert tried == {"rsLoRA, DoRA", "rsLoRA, LoRA+ (ratio 16)"}
    assert any(each.asked.hyper_parameters.variant == "" for each in results), (
        "the default recipe stays plain"
    )
    assert any("rsLoRA, DoRA" in each.claim for each in result.evidence)
    assert Study.load(result.directory).get_fact(CALIBRATION)["dora"] >= 1, "measured beside plain LoRA"
    config = json.loads((result.directory / "adapter" / "adapter_config.json").read_text())
    assert config["use_rslora"] is True
    assert config["use_dora"] is result.recommended.use_dora
    assert result.recommended.lora_config().use_rslora
    (result.directory / "result.json").unlink()
    again = loratune.tune(**wishes, resume=True)
    assert (again.recommended, again.evidence) == (result.recommended, result.evidence)
    assert len(Study.load(result.directory).results()) == len(results)


def test_a_dora_adapter_is_written_for_peft(place: dict[str, Any], tmp_path: Path) -> None:
    trained = loratune.train(
        **place, out=tmp_path / "run", rank=2, learning_rate=1e-2, batch_size=8, use_dora=True
    )
    assert trained.hyper_parameters.use_dora
    folder = trained.directory / "adapter"
    magnitudes = [name for name in load_file(folder / "adapter_model.safetensors") if "magnitude" in name]
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(place["model"]), folder)
    assert len(magnitudes) == len([name for name, _ in loaded.named_parameters() if "magnitude" in name]) > 0
    assert "DoRA" in (folder / "README.md").read_text()


def test_dora_on_a_base_in_4_bits_is_refused(place: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    with pytest.raises(ModelError, match="DoRA needs the base's weights as they are"):
        loratune.train(**(place | {"dtype": "nf4"}), out=tmp_path / "run", use_dora=True)
    assert not (tmp_path / "run").exists()
