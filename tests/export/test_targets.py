"""Files of every target, parsed: the values that repeat the run, and refusals of what cannot be said there."""

import ast
import json
from typing import Any

import pytest
import yaml

from loratune.engine.slot import schedule
from loratune.errors import InputError
from loratune.export import TARGETS, find_target
from recipe_fixture import LAYERS, PATTERN, recipe


def exported(target: str, rows: str = "", **changes: Any) -> dict[str, str]:
    return dict(find_target(target).export(recipe(**changes), rows).files)


def loaded(target: str, file: str, rows: str = "", **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(exported(target, rows, **changes)[file])
    return values


def keywords(script: str, name: str) -> dict[str, Any]:
    """The literal keyword arguments of `NAME = dict(…)` or of the call of a method `name`."""
    for node in ast.walk(ast.parse(script)):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            call = node.value
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(name):
            call = node
        else:
            continue
        assert isinstance(call, ast.Call)
        return {each.arg: _literal(each.value) for each in call.keywords if each.arg}
    raise AssertionError(f"no {name} in the script")


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


TRAINING = {
    "learning_rate": 3e-4,
    "lr_scheduler_type": "linear",
    "warmup_steps": 9,
    "num_train_epochs": 2.0,
    "per_device_train_batch_size": 6,
    "gradient_accumulation_steps": 2,
    "weight_decay": 0.01,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "max_grad_norm": 1.0,
    "seed": 7,
    "bf16": True,
    "eval_steps": 16,
    "save_steps": 16,
    "load_best_model_at_end": True,
}
"""168 steps, ten looks: one every 16 steps; 12 rows a step as 2 x 6."""


@pytest.mark.parametrize(("target", "file"), [("trl", "trl.yaml"), ("llamafactory", "llamafactory.yaml")])
def test_yaml_with_transformers_names(target: str, file: str) -> None:
    values = loaded(target, file, "prompt-completion")
    assert TRAINING.items() <= values.items()
    assert "warmup_ratio" not in values, "TRL refuses it, transformers 5 has none"


@pytest.mark.parametrize("target", ["transformers", "unsloth"])
def test_scripts_with_transformers_names(target: str) -> None:
    assert TRAINING.items() <= keywords(exported(target)["train.py"], "ARGUMENTS").items()


def test_trl_leaves_no_default_that_differs() -> None:
    values = loaded("trl", "trl.yaml", "prompt-completion")
    expected = {
        "model_name_or_path": "owner/base", "dtype": "bfloat16", "use_peft": True, "lora_r": 8, "lora_alpha": 16,
        "lora_dropout": 0.05, "lora_target_modules": ["q_proj"], "max_length": 96, "packing": False,
        "completion_only_loss": True, "eos_token": "<|end|>", "dataset_name": "data",
        "dataset_train_split": "train", "dataset_test_split": "validation", "eval_strategy": "steps",
    }  # fmt: skip
    assert expected.items() <= values.items()
    assert "completion_only_loss" not in loaded("trl", "trl.yaml", "text"), (
        "TRL refuses it without completions"
    )
    assert loaded("trl", "trl.yaml", "text", dtype="float32")["bf16"] is False, "TRL's default is true"


@pytest.mark.parametrize("changes", [{"rank_pattern": PATTERN}, {"r": 3, "lora_alpha": 4.5}])
def test_what_trls_yaml_cannot_carry_is_a_script(changes: dict[str, Any]) -> None:
    (script,) = exported("trl", "prompt-completion", **changes).values()
    adapter = keywords(script, "ADAPTER")
    assert adapter["lora_alpha"] == changes.get("lora_alpha", 16)
    assert adapter.get("rank_pattern", {}) == dict(changes.get("rank_pattern", ()))
    arguments = keywords(script, "ARGUMENTS")
    assert TRAINING.items() <= arguments.items()
    assert arguments["model_init_kwargs"] == {"dtype": "bfloat16"}
    assert arguments["max_length"] == 96
    assert keywords(script, "EarlyStoppingCallback") == {"early_stopping_patience": 3}


def test_peft_keeps_the_scaling_of_every_layer() -> None:
    values = json.loads(exported("peft", rank_pattern=PATTERN)["adapter_config.json"])
    assert values["rank_pattern"] == {LAYERS[0]: 4, LAYERS[1]: 2}
    assert values["alpha_pattern"] == {LAYERS[0]: 8, LAYERS[1]: 4}
    assert {"r": 8, "lora_alpha": 16, "task_type": "CAUSAL_LM", "peft_type": "LORA"}.items() <= values.items()


def test_axolotl_has_steps_or_a_ratio_never_both() -> None:
    values = loaded("axolotl", "axolotl.yaml", "segments", rank_pattern=PATTERN)
    expected = {
        "base_model": "owner/base", "adapter": "lora", "lora_r": 8, "lora_alpha": 16, "learning_rate": 3e-4,
        "lr_scheduler": "linear", "warmup_steps": 9, "num_epochs": 2.0, "micro_batch_size": 6,
        "gradient_accumulation_steps": 2, "sequence_len": 96, "sample_packing": False, "train_on_inputs": False,
        "max_grad_norm": 1.0, "adam_beta2": 0.999, "seed": 7, "bf16": True, "early_stopping_patience": 3,
        "lora_rank_pattern": dict(PATTERN), "lora_alpha_pattern": {LAYERS[0]: 8, LAYERS[1]: 4},
        "special_tokens": {"eos_token": "<|end|>"},
    }  # fmt: skip
    assert expected.items() <= values.items()
    assert "warmup_ratio" not in values
    assert "val_set_size" not in values, "it goes with no test_datasets"
    assert values["datasets"][0]["type"] == "input_output"
    assert loaded("axolotl", "axolotl.yaml", "tokens")["datasets"][0]["type"] is None


def test_llamafactory_names_its_rows_and_its_template() -> None:
    files = exported("llamafactory", "pairs")
    values, info = yaml.safe_load(files["llamafactory.yaml"]), json.loads(files["dataset_info.json"])
    assert values["template"] == "empty"
    assert values["cutoff_len"] == 96
    assert values["lora_rank"] == 8
    assert values["lora_target"] == "q_proj"
    assert info[values["dataset"]] == {
        "file_name": "data/train.jsonl",
        "columns": {"prompt": "prompt", "response": "completion"},
    }
    turns = json.loads(exported("llamafactory", "turns")["dataset_info.json"])[values["eval_dataset"]]
    assert turns["formatting"] == "sharegpt"
    assert turns["tags"]["role_tag"] == "role"


def test_unsloth_gets_whole_warm_up_steps_and_its_own_seed() -> None:
    script = exported("unsloth", "tokens")["train.py"]
    assert isinstance(keywords(script, "ARGUMENTS")["warmup_steps"], int)
    adapter = keywords(script, "get_peft_model")
    assert {
        "r": 8,
        "lora_alpha": 16,
        "random_state": 7,
        "target_modules": ["q_proj"],
    }.items() <= adapter.items()
    patterned = keywords(exported("unsloth", "tokens", rank_pattern=PATTERN)["train.py"], "get_peft_model")
    assert patterned["rank_pattern"] == dict(PATTERN), "handed on to PEFT's configuration"
    assert patterned["alpha_pattern"] == {LAYERS[0]: 8, LAYERS[1]: 4}
    loading = keywords(script, "FastLanguageModel.from_pretrained")
    assert loading["load_in_4bit"] is False, "Unsloth's default is four bits"
    first = next(line for line in script.splitlines() if "import" in line and "Path" not in line)
    assert "unsloth" in first, "it patches what is imported after it"


def test_mlx_has_a_scale_and_iterations() -> None:
    files = exported("mlx", "prompt-completion", weight_decay=0.1)
    values = yaml.safe_load(files["mlx.yaml"])
    expected = {
        "model": "owner/base", "train": True, "iters": 168, "batch_size": 12, "num_layers": -1,
        "mask_prompt": True, "max_seq_length": 96, "seed": 7, "optimizer": "adamw",
    }  # fmt: skip
    assert expected.items() <= values.items()
    assert values["lora_parameters"] == {
        "keys": ["self_attn.q_proj"],
        "rank": 8,
        "scale": 2.0,
        "dropout": 0.05,
    }
    assert values["optimizer_config"]["adamw"]["bias_correction"] is True, "mlx's default is none"
    assert "train.py" in files
    assert set(exported("mlx", "text")) == {"mlx.yaml"}, "plain text needs no script"


@pytest.mark.parametrize("warmup", [0, 9])
def test_the_learning_rate_of_mlx_is_ours_to_a_step(warmup: int) -> None:
    values = loaded("mlx", "mlx.yaml", "text", warmup_steps=warmup)["lr_schedule"]
    peak, end, fall = values["arguments"]
    for step in range(168):
        # as mlx_lm.tuner.utils.build_schedule joins the two
        if values["warmup"] and step <= values["warmup"]:
            theirs = peak * step / values["warmup"]
        else:
            at = step - (values["warmup"] + 1 if values["warmup"] else 0)
            theirs = peak + (end - peak) * min(at, fall) / fall
        assert theirs == pytest.approx(peak * schedule(step, warmup=warmup, total=168), abs=peak / 158)


@pytest.mark.parametrize("target", ["llamafactory", "mlx"])
def test_one_rank_for_all_layers_is_said(target: str) -> None:
    with pytest.raises(InputError, match=r"takes one rank for all layers, but 2 .* export --to peft"):
        exported(target, rank_pattern=PATTERN)


@pytest.mark.parametrize("target", ["axolotl", "llamafactory"])
def test_a_fractional_alpha_is_refused(target: str) -> None:
    with pytest.raises(InputError, match=r"whole numbers for alpha, got 4\.5; export --to peft"):
        exported(target, r=3, lora_alpha=4.5)


def test_mlx_adapts_the_same_modules_in_every_layer() -> None:
    with pytest.raises(InputError, match="here they differ"):
        exported("mlx", modules=("model.layers.0.mlp.up_proj", "model.layers.1.mlp.down_proj"))


def test_an_unknown_target_is_told_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"--to must be one of peft, .*, mlx, got 'torchtune'"):
        find_target("torchtune")


@pytest.mark.parametrize("target", TARGETS)
def test_names_from_outside_stay_values(target: str) -> None:
    nasty = 'own\'er/"x": {1}\n#!'
    for name, text in exported(target, "tokens", model=nasty, origin=nasty).items():
        if name.endswith(".py"):
            assert repr(nasty) in text or target == "mlx"
            ast.parse(text)
        elif name.endswith(".yaml"):
            values = yaml.safe_load(text)
            assert nasty in (values.get("model_name_or_path"), values.get("base_model"), values.get("model"))
        elif name == "adapter_config.json":
            assert json.loads(text)["base_model_name_or_path"] == nasty


@pytest.mark.parametrize(
    ("batch", "micro", "accumulation"), [(1, 1, 1), (8, 8, 1), (12, 6, 2), (13, 1, 13), (64, 8, 8)]
)
def test_micro_batches_make_up_the_batch(batch: int, micro: int, accumulation: int) -> None:
    values = recipe(batch_size=batch)
    assert (values.micro_batch, values.accumulation) == (micro, accumulation)


def test_a_base_in_four_bits_is_one_in_every_trainer_that_has_them() -> None:
    """NF4 with quantised scales, under each trainer's own names; whole weights where it has another format only."""
    packed = {"weight_format": "nf4"}
    trl = loaded("trl", "trl.yaml", "prompt-completion", **packed)
    assert (trl["load_in_4bit"], trl["bnb_4bit_quant_type"], trl["use_bnb_nested_quant"]) == (
        True,
        "nf4",
        True,
    )
    axolotl = loaded("axolotl", "axolotl.yaml", **packed)
    assert (axolotl["adapter"], axolotl["load_in_4bit"]) == ("qlora", True)
    llamafactory = loaded("llamafactory", "llamafactory.yaml", **packed)
    assert llamafactory["quantization_bit"] == 4
    assert llamafactory["quantization_type"] == "nf4"
    assert llamafactory["double_quantization"] is True
    asked = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "bfloat16",
    }
    script = exported("transformers", "tokens", **packed)["train.py"]
    assert keywords(script, "AutoModelForCausalLM.from_pretrained")["quantization_config"] == asked
    script = exported("trl", "tokens", rank_pattern=PATTERN, **packed)["train.py"]
    assert keywords(script, "ARGUMENTS")["model_init_kwargs"]["quantization_config"] == asked
    script = exported("unsloth", "tokens", **packed)["train.py"]
    assert keywords(script, "FastLanguageModel.from_pretrained")["load_in_4bit"] is True
    told = find_target("mlx").export(recipe(**packed), "text").losses
    assert any("whole weights" in sentence for sentence in told)


def test_plain_bases_are_not_quantised_anywhere() -> None:
    for target in TARGETS:
        for text in exported(target, "tokens").values():
            assert "load_in_4bit: true" not in text
            assert "load_in_4bit=True" not in text
            assert "quantization_bit" not in text
            assert "quantization_config" not in text


RSLORA = {"trl": "use_rslora", "axolotl": "peft_use_rslora", "llamafactory": "use_rslora"}


@pytest.mark.parametrize("target", RSLORA)
def test_rslora_in_yaml(target: str) -> None:
    rows = "segments" if target == "axolotl" else "prompt-completion"
    assert loaded(target, f"{target}.yaml", rows, use_rslora=True)[RSLORA[target]] is True
    assert RSLORA[target] not in loaded(target, f"{target}.yaml", rows)


DORA = {"trl": "use_dora", "axolotl": "peft_use_dora", "llamafactory": "use_dora"}


@pytest.mark.parametrize("target", DORA)
def test_dora_in_yaml(target: str) -> None:
    rows = "segments" if target == "axolotl" else "prompt-completion"
    values = loaded(target, f"{target}.yaml", rows, use_dora=True, lora_dropout=0.0)
    assert values[DORA[target]] is True


@pytest.mark.parametrize("target", ["unsloth", "mlx"])
def test_dora_where_there_is_none(target: str) -> None:
    with pytest.raises(InputError, match=r"cannot repeat DoRA, .*export --to transformers, axolotl or peft"):
        exported(target, "prompt-completion", use_dora=True, lora_dropout=0.0)
    written = exported("peft", use_dora=True, lora_dropout=0.0)["adapter_config.json"]
    assert json.loads(written)["use_dora"] is True


def test_rslora_in_adapter_configurations() -> None:
    assert json.loads(exported("peft", use_rslora=True)["adapter_config.json"])["use_rslora"] is True
    for target in ("transformers", "unsloth"):
        name = "ADAPTER" if target == "transformers" else "get_peft_model"
        assert keywords(exported(target, use_rslora=True)["train.py"], name)["use_rslora"] is True
    scale = loaded("mlx", "mlx.yaml", "prompt-completion", use_rslora=True)["lora_parameters"]["scale"]
    assert scale == pytest.approx(16 / 8**0.5)


@pytest.mark.parametrize("target", ["axolotl", "llamafactory"])
def test_loraplus_in_yaml(target: str) -> None:
    rows = "segments" if target == "axolotl" else "prompt-completion"
    assert loaded(target, f"{target}.yaml", rows, loraplus_lr_ratio=16.0)["loraplus_lr_ratio"] == 16


def test_loraplus_in_a_script() -> None:
    script = exported("transformers", loraplus_lr_ratio=16.0)["train.py"]
    assert keywords(script, "create_loraplus_optimizer") == {
        "lr": 3e-4, "loraplus_lr_ratio": 16, "loraplus_weight_decay": 0.01, "betas": (0.9, 0.999), "eps": 1e-8,
    }  # fmt: skip
    assert "from peft.optimizers import create_loraplus_optimizer\n" in script
    assert "loraplus" not in exported("transformers")["train.py"]


@pytest.mark.parametrize("target", ["trl", "unsloth", "mlx"])
def test_a_variant_without_a_setting_is_refused_by_name(target: str) -> None:
    with pytest.raises(InputError, match=r"cannot repeat LoRA\+ \(ratio 16\).*export --to transformers"):
        exported(target, "prompt-completion", loraplus_lr_ratio=16.0)
