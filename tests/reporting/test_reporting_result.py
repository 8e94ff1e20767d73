"""`result.json`: the exact keys of version 1, valid JSON whatever the numbers, and what comes back from it."""

import json
from math import inf, nan
from pathlib import Path

import pytest

from loratune.errors import OutputError
from loratune.files.write import write_atomically
from loratune.reporting.facts import ModelScores
from loratune.reporting.result import load_result, result_values, write_result
from loratune.values import Decision, Evidence
from report_fixture import OURS, make_facts

KEYS = {
    "schema": None,
    "verdict": None,
    "recommended": dict.fromkeys(
        [
            "r",
            "lora_alpha",
            "lora_dropout",
            "target_modules",
            "learning_rate",
            "batch_size",
            "weight_decay",
            "epochs",
            "warmup_ratio",
            "max_length",
        ]
    ),
    "metrics": {
        "validation": dict.fromkeys(["nll", "accuracy", "f1"]),
        "test": dict.fromkeys(["nll", "accuracy", "f1"]),
        "base_model": dict.fromkeys(["validation", "test"], dict.fromkeys(["nll", "accuracy", "f1"])),
        "default_recipe": dict.fromkeys(["validation", "test"], dict.fromkeys(["nll", "accuracy", "f1"])),
        "fair_opponent": {
            "learning_rates": None,
            "hyper_parameters": None,
            "validation": {},
            "gains": None,
        },
    },
    "evidence": [dict.fromkeys(["claim", "value", "unit", "interval", "margin", "holds", "state"])],
    "cost": {
        **dict.fromkeys(["seconds", "trained_tokens", "trials", "predicted_seconds"]),
        "peak_memory_bytes": dict.fromkeys(["predicted", "measured"]),
    },
    "sensitivity": {
        "impacts": [
            dict.fromkeys(
                [
                    "name",
                    "tried",
                    "effect",
                    "effect_interval",
                    "effect_rows",
                    "share",
                    "share_interval",
                    "memory_bytes",
                    "time_factor",
                ]
            )
        ],
        **dict.fromkeys(["trials", "wanted_trials", "interactions", "noise"]),
    },
    "timeline": [],
    "mean_trials_in_pack": 0.0,
    "stages": [
        dict.fromkeys(["name", "question", "answer", "trials", "diverged", "cost", "seconds", "details"])
    ],
}


def assert_keys(value: object, expected: object, path: str = "result") -> None:
    if isinstance(expected, dict):
        assert isinstance(value, dict), path
        assert value.keys() == expected.keys(), path
        for name, inner in expected.items():
            assert_keys(value[name], inner, f"{path}.{name}")
    elif isinstance(expected, list):
        assert isinstance(value, list), path
        for index, item in enumerate(value):
            assert_keys(item, expected[0], f"{path}[{index}]")


def test_every_key_of_version_1(tmp_path: Path) -> None:
    document = json.loads(write_result(make_facts(), tmp_path).read_text())
    assert_keys(document, KEYS)
    assert document["schema"] == 1
    assert document["recommended"] == {
        "r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "target_modules": ["all-linear"],
        "learning_rate": 1e-3,
        "batch_size": 16,
        "weight_decay": 0.0,
        "epochs": 3,
        "warmup_ratio": 0.05,
        "max_length": 64,
    }
    assert document["metrics"]["default_recipe"]["test"] == {"nll": 0.2239, "accuracy": 0.788, "f1": 0.779}
    assert document["evidence"][0]["interval"] == [None, 0.0043]
    assert document["cost"]["trials"] == 36
    assert document["cost"]["trained_tokens"] == 4_905_000
    assert document["cost"]["peak_memory_bytes"] == {"predicted": 1_900_000_000, "measured": 1_720_000_000}


def test_a_run_without_a_test_split_keeps_the_keys() -> None:
    document = result_values(make_facts(recommended=ModelScores(), base_model=ModelScores(), gains=()))
    assert document["metrics"]["test"] == {}
    assert document["metrics"]["base_model"] == {"validation": {}, "test": {}}


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    facts = make_facts(recommended=ModelScores(validation={"nll": inf, "f1": nan}))
    text = write_result(facts, tmp_path).read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert json.loads(text)["metrics"]["validation"] == {"nll": None, "f1": None}


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    facts = make_facts()
    write_result(facts, tmp_path)
    result = load_result(tmp_path)
    assert result.recommended.r == OURS.r
    assert result.recommended.max_length == 64
    assert result.evidence == facts.decision.evidence  # infinite ends of intervals included
    assert result.stages == facts.decision.stages
    assert result.metrics["test"]["accuracy"] == 0.846
    assert result.directory == tmp_path


def test_lora_config_is_pefts(tmp_path: Path) -> None:
    from dataclasses import replace

    from peft import LoraConfig

    write_result(make_facts(), tmp_path)
    config = load_result(tmp_path).recommended.lora_config()
    assert isinstance(config, LoraConfig)
    assert (config.r, config.lora_alpha, config.lora_dropout) == (8, 16, 0.0)
    assert config.target_modules == "all-linear"
    named = Decision(hyper_parameters=replace(OURS, target_modules=("v_proj", "q_proj")))
    write_result(make_facts(decision=named), tmp_path)
    assert load_result(tmp_path).recommended.lora_config().target_modules == {"q_proj", "v_proj"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is not readable"),
        ("[1]", "is not readable"),
        ('{"schema": 1}', "is not readable"),
        ('{"schema": ' + "9" * 400 + "}", "an integer in it has 400 digits"),
        ("[" * 100_000, "nested too deep"),
        ('{"schema": 2}', "schema 1, got 2"),
    ],
)
def test_unreadable_results(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(OutputError, match=expected) as caught:
        load_result(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_unfinished_run_has_no_result(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="--resume"):
        load_result(tmp_path)


def test_writing_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("old")
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert [each.name for each in tmp_path.iterdir()] == ["result.json"]


def test_a_one_sided_interval_keeps_its_open_side(tmp_path: Path) -> None:
    bound = Evidence(claim="at least", value=1.0, interval=(0.5, inf), holds=True)
    write_result(make_facts(decision=Decision(hyper_parameters=OURS, evidence=(bound,))), tmp_path)
    assert load_result(tmp_path).evidence == (bound,)
