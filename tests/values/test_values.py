"""What the frozen dataclasses promise."""

import json
from dataclasses import replace
from math import inf
from typing import Any

import pytest

from loratune.errors import HyperParameterError
from loratune.values import Evidence, HyperParameters, PlannedStage, Stage, Trial, default_recipe
from loratune.values.plain import finite, from_plain, to_plain


def test_a_trial_is_known_by_what_changes_its_result() -> None:
    trial = Trial(hyper_parameters=default_recipe(), seed=3, fraction=0.5, stage=Stage.RANK)
    whole = replace(trial, hyper_parameters=replace(trial.hyper_parameters, lora_alpha=32.0, epochs=1))
    assert trial.key == whole.key == replace(trial, stage=Stage.ALPHA).key
    others = [
        replace(trial, seed=4),
        replace(trial, fraction=0.25),
        replace(trial, stage=Stage.FINAL),
        replace(trial, hyper_parameters=replace(trial.hyper_parameters, lora_dropout=0.1)),
        replace(trial, hyper_parameters=replace(trial.hyper_parameters, target_modules=("q_proj",))),
    ]
    assert len({trial.key, *(other.key for other in others)}) == 6
    assert Trial.from_dict(to_plain(trial)) == trial


@pytest.mark.parametrize(
    "change",
    [
        {"r": 0}, {"r": 2.5}, {"lora_alpha": 0}, {"learning_rate": float("nan")}, {"batch_size": 0},
        {"lora_dropout": 1.0}, {"weight_decay": -1}, {"epochs": 0}, {"warmup_ratio": 1}, {"target_modules": ()},
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(HyperParameterError):
        replace(default_recipe(), **change)


@pytest.mark.parametrize(
    "name", ["lora_alpha", "learning_rate", "weight_decay", "epochs", "loraplus_lr_ratio", "beta"]
)
def test_values_that_float32_lacks_are_refused(name: str) -> None:
    change: dict[str, Any] = {name: 1e300}
    with pytest.raises(
        HyperParameterError, match=rf"{name} must be .* and at most 1e\+30, got 1e\+300; give e.g."
    ):
        replace(default_recipe(), **change)


def test_scaling_is_peft_s() -> None:
    assert HyperParameters(r=8, lora_alpha=16, learning_rate=1, batch_size=1).scaling == 2


def test_plain_values_are_json_and_come_back() -> None:
    """Nested values, tuples, enumerations; PEFT's names for the ranks of single layers; infinite bounds as they are."""
    setting = HyperParameters(r=8, lora_alpha=16, learning_rate=1e-3, batch_size=16, rank_pattern=(("q", 4),))
    trial = Trial(hyper_parameters=setting, stage=Stage.ALPHA)
    stage = PlannedStage(name="alpha", question="Which?", trials=1, cost=0.5, examples=(trial,))
    values = to_plain(stage)
    assert values["examples"][0]["stage"] == "alpha"
    assert values["examples"][0]["hyper_parameters"]["rank_pattern"] == {"q": 4}
    assert json.loads(json.dumps(values)) == values
    claim = Evidence(claim="less", value=0.5, interval=(-inf, 0.5))
    assert from_plain(Evidence, to_plain(claim)) == claim
    assert finite(to_plain(claim))["interval"] == [None, 0.5]
    with pytest.raises(ValueError, match="value"):
        from_plain(Evidence, {"claim": "less", "value": "many"})


def test_a_variant_in_documents_and_keys() -> None:
    """Plain trials keep the documents and keys that they had; a variant has others, and comes back."""
    plain = HyperParameters(r=4, lora_alpha=8, learning_rate=1e-3, batch_size=8)
    assert not {"use_rslora", "loraplus_lr_ratio"} & plain.to_dict().keys()
    other = replace(plain, use_rslora=True, loraplus_lr_ratio=16.0)
    assert HyperParameters.from_dict(other.to_dict()) == other
    assert other.variant == "rsLoRA, LoRA+ (ratio 16)"
    assert (
        len(
            {
                Trial(hyper_parameters=each).key
                for each in (plain, other, replace(other, loraplus_lr_ratio=4.0))
            }
        )
        == 3
    )
    assert other.scaling == 4
    pattern = replace(other, rank_pattern=(("x", 16),))
    assert pattern.alpha_pattern == {"x": 16.0}, "16 / sqrt(16) is the scaling, too"


def test_a_ratio_below_one_is_refused() -> None:
    with pytest.raises(
        HyperParameterError, match=r"at least 1, such as 16, got 0\.5; give e.g. --loraplus-lr-ratio 16"
    ):
        HyperParameters(r=4, lora_alpha=8, learning_rate=1e-3, batch_size=8, loraplus_lr_ratio=0.5)
