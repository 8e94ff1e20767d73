"""Other trainers' files as options of tune."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from loratune.errors import InputError
from loratune.export import find_target
from loratune.export.incoming import options_from
from loratune.tuning.options import TuneOptions
from recipe_fixture import recipe


def read(folder: Path, values: Any) -> dict[str, Any]:
    file = folder / "theirs.yaml"
    file.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return dict(options_from(file).options)


def test_trl(tmp_path: Path) -> None:
    text = (
        "model_name_or_path: owner/base\ndataset_name: owner/rows\ndataset_config: small\nmax_length: 512\n"
        "lora_target_modules: [q_proj, v_proj]\nnum_train_epochs: 3\nwarmup_steps: 0.03\n"
        "learning_rate: 1e-4\nlora_r: 8\n"
    )
    assert read(tmp_path, text) == {
        "model": "owner/base", "data": "owner/rows:small", "max_length": 512,
        "target_modules": ("q_proj", "v_proj"), "epochs": 3.0, "warmup_ratio": 0.03,
    }  # fmt: skip
    assert "warmup_ratio" not in read(tmp_path, text.replace("0.03", "20")), "whole steps are no share"


def test_trls_mixture_of_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    entry = {"path": "json", "data_files": {"train": "a.jsonl", "test": "b.jsonl"}}
    found = read(tmp_path, {"model_name_or_path": "owner/base", "datasets": [entry]})
    assert found == {"model": "owner/base", "data": str(tmp_path / "a.jsonl"), "validation": "b.jsonl"}


def test_axolotl(tmp_path: Path) -> None:
    shape = {"field_instruction": "question", "field_output": "answer", "format": "Q: {instruction}\nA:"}
    values = {
        "base_model": "owner/base", "datasets": [{"path": "rows.jsonl", "ds_type": "json", "type": shape}],
        "test_datasets": [{"path": "held.jsonl"}], "sequence_len": 2048, "lora_target_linear": True,
        "num_epochs": "1e0", "warmup_ratio": 0.1, "seed": 5,
    }  # fmt: skip
    assert read(tmp_path, values) == {
        "model": "owner/base", "data": "rows.jsonl", "validation": "held.jsonl", "completion_column": "answer",
        "template": "Q: {question}\nA:", "max_length": 2048, "target_modules": ("all-linear",), "epochs": 1.0,
        "warmup_ratio": 0.1, "seed": 5,
    }  # fmt: skip


def test_llamafactory(tmp_path: Path) -> None:
    info = {"mine": {"file_name": "rows.json", "columns": {"prompt": "ask", "response": "say"}}}
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "dataset_info.json").write_text(json.dumps(info))
    (tmp_path / "sets" / "rows.json").touch()
    values = {
        "model_name_or_path": "owner/base", "stage": "sft", "dataset": "mine", "dataset_dir": "sets",
        "cutoff_len": 1024, "lora_target": "all", "num_train_epochs": 2.0, "max_samples": 500,
    }  # fmt: skip
    assert read(tmp_path, values) == {
        "model": "owner/base", "data": str(tmp_path / "sets" / "rows.json"), "prompt_column": "ask",
        "completion_column": "say", "max_length": 1024, "train_rows": 500, "target_modules": ("all-linear",),
        "epochs": 2.0,
    }  # fmt: skip


@pytest.mark.parametrize("target", ["trl", "axolotl", "llamafactory"])
def test_what_was_exported_comes_back(target: str, tmp_path: Path) -> None:
    shape = {"trl": "prompt-completion", "axolotl": "segments", "llamafactory": "pairs"}[target]
    for name, text in find_target(target).export(recipe(), shape).files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").touch()
    options = TuneOptions(**options_from(next(tmp_path.glob("*.yaml"))).options)
    expected = recipe()
    assert options.model == expected.model
    assert Path(options.data) in (tmp_path / "data", tmp_path / "data" / "train.jsonl")
    assert options.target_modules == ("q_proj",)
    assert (options.max_length, options.epochs, options.seed) == (96, 2.0, 7)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"base_model": "b", "datasets": [{"path": "a"}, {"path": "b"}]}, "one dataset for a search, got 2"),
        ({"model_name_or_path": "b", "datasets": [{"path": "json"}]}, "must name its files"),
        ({"model_name_or_path": "b", "stage": "sft", "dataset": "x,y"}, "one dataset for a search, got 2"),
        ({"model_name_or_path": "b", "stage": "sft", "dataset": "x"}, "must be listed in dataset_info.json"),
        ({"model_name_or_path": "b", "num_train_epochs": "many"}, "got|has 'many'"),
        ({"learning_rate": 1}, "has neither model_name_or_path nor base_model"),
        ("- a\n- b\n", "holds a list"),
        ("", "holds null"),
        ("base_model: a\nbase_model: b\n", "the key 'base_model' is there twice"),
        ({"base_model": "b", "datasets": "foo"}, r"datasets of --from-config .*, got text \('foo'\)"),
        ({"base_model": "b"}, "one dataset for a search, got 0"),
        (
            {"model_name_or_path": "b", "stage": "sft", "dataset": 5},
            "'5' must be listed in dataset_info.json",
        ),
        ("a: [", "must be a readable YAML file"),
    ],
)
def test_what_cannot_be_taken_over_is_one_sentence(values: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=told) as refused:
        read(tmp_path, values)
    assert "\n" not in str(refused.value)


def test_a_dataset_described_by_no_mapping_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps({"mine": {"columns": "x"}}))
    with pytest.raises(InputError, match="columns of --from-config must hold keys and values, got text"):
        read(tmp_path, {"model_name_or_path": "b", "stage": "sft", "dataset": "mine"})


def test_a_name_longer_than_a_file_may_have_is_the_hubs(tmp_path: Path) -> None:
    long = "x" * 300
    assert read(tmp_path, {"model_name_or_path": long, "dataset_name": "r"})["model"] == long
