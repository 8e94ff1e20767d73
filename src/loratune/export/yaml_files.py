"""Trainers that read one YAML file: Axolotl and LLaMA-Factory.

LLaMA-Factory's template `empty` adds nothing, so the rows hold prompts and turns as they were trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from json import dumps
from typing import Any, ClassVar

from loratune.export.recipe import BETAS, CLIP, EPSILON, Recipe, training_arguments
from loratune.export.rows import Format, Pairs, Segments, Tokens, Turns
from loratune.export.target import DATA, Exported, demand_known, demand_one_rank, demand_whole_alphas, to_yaml


class Axolotl:
    name: ClassVar[str] = "axolotl"
    formats: ClassVar[tuple[Format, ...]] = (Segments(), Tokens())

    def export(self, recipe: Recipe, rows: str) -> Exported:
        demand_whole_alphas(recipe, "Axolotl")
        demand_known(recipe, "Axolotl", *_AXOLOTL)
        return Exported(
            files={"axolotl.yaml": to_yaml(_axolotl_yaml(recipe, rows), recipe.comment)},
            command="axolotl train axolotl.yaml",
        )


_AXOLOTL = {
    "use_rslora": "peft_use_rslora",
    "use_dora": "peft_use_dora",
    "loraplus_lr_ratio": "loraplus_lr_ratio",
}
_LLAMAFACTORY = {"use_rslora": "use_rslora", "use_dora": "use_dora", "loraplus_lr_ratio": "loraplus_lr_ratio"}
"""Their keys for the fields of `HyperParameters` that make a variant of LoRA."""


def _variant(recipe: Recipe, keys: Mapping[str, str]) -> dict[str, Any]:
    chosen = recipe.hyper_parameters.to_dict()  # without what is as in plain LoRA
    return {key: chosen[name] for name, key in keys.items() if name in chosen}


def _axolotl_yaml(recipe: Recipe, rows: str) -> dict[str, Any]:
    chosen, half = recipe.hyper_parameters, recipe.dtype == "bfloat16"
    # rows that are tokens already have no type
    shape = {"type": "input_output"} if rows == Segments.name else {"type": None}
    files = {
        split: [{"path": file, "ds_type": "json", "split": "train", **shape}] for split, file in DATA.items()
    }
    patterns = {
        "lora_rank_pattern": dict(recipe.rank_pattern),
        "lora_alpha_pattern": dict(recipe.alpha_pattern),
    }
    return {
        "base_model": recipe.model,
        "datasets": files["train"],
        "test_datasets": files["validation"],
        "dataset_prepared_path": "prepared",
        "train_on_inputs": False,
        "sequence_len": recipe.max_length,
        "sample_packing": False,
        "special_tokens": {"eos_token": recipe.end_of_turn},
        "adapter": "qlora" if recipe.four_bits else "lora",
        **({"load_in_4bit": True} if recipe.four_bits else {}),  # NF4, scales quantised too
        "lora_r": chosen.r,
        "lora_alpha": recipe.alpha,
        "lora_dropout": chosen.lora_dropout,
        "lora_target_modules": list(chosen.target_modules),
        **(patterns if recipe.rank_pattern else {}),
        **_variant(recipe, _AXOLOTL),
        "learning_rate": chosen.learning_rate,
        "lr_scheduler": "linear",
        "warmup_steps": recipe.warmup_steps,
        "num_epochs": float(chosen.epochs),
        "micro_batch_size": recipe.micro_batch,
        "gradient_accumulation_steps": recipe.accumulation,
        "optimizer": "adamw_torch",
        "weight_decay": chosen.weight_decay,
        "adam_beta1": BETAS[0],
        "adam_beta2": BETAS[1],
        "adam_epsilon": EPSILON,
        "max_grad_norm": CLIP,
        "seed": recipe.seed,
        "bf16": half,
        "tf32": False,
        "gradient_checkpointing": True,
        "logging_steps": max(1, min(10, recipe.steps // 10)),
        "eval_steps": recipe.steps_between_looks,
        "save_steps": recipe.steps_between_looks,
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
        "early_stopping_patience": recipe.patience,
        "output_dir": "axolotl-run",
    }


_HALF = ("LLaMA-Factory loads the base in its checkpoint's own type, which may not be the run's float32.",)
_FOUR_BITS = {"quantization_bit": 4, "quantization_type": "nf4", "double_quantization": True}
_NAMES = {"train": "loratune_train", "validation": "loratune_validation"}


class LlamaFactory:
    name: ClassVar[str] = "llamafactory"
    formats: ClassVar[tuple[Format, ...]] = (Pairs(), Turns())

    def export(self, recipe: Recipe, rows: str) -> Exported:
        demand_one_rank(recipe, "LLaMA-Factory")
        demand_whole_alphas(recipe, "LLaMA-Factory")
        demand_known(recipe, "LLaMA-Factory", *_LLAMAFACTORY)
        return Exported(
            files={
                "llamafactory.yaml": to_yaml(_llamafactory_yaml(recipe), recipe.comment),
                "dataset_info.json": dumps(_datasets(rows), indent=2) + "\n",
            },
            command="llamafactory-cli train llamafactory.yaml",
            losses=_HALF if recipe.dtype == "float32" else (),
        )


def _datasets(rows: str) -> dict[str, Any]:
    if rows == Pairs.name:
        shape: dict[str, Any] = {"columns": {"prompt": "prompt", "response": "completion"}}
    else:
        tags = {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
        }
        shape = {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}
    return {_NAMES[split]: {"file_name": file, **shape} for split, file in DATA.items()}


def _llamafactory_yaml(recipe: Recipe) -> dict[str, Any]:
    chosen = recipe.hyper_parameters
    return {
        "model_name_or_path": recipe.model,
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        **(_FOUR_BITS if recipe.four_bits else {}),
        "lora_rank": chosen.r,
        "lora_alpha": recipe.alpha,
        "lora_dropout": chosen.lora_dropout,
        "lora_target": ",".join(chosen.target_modules),
        **_variant(recipe, _LLAMAFACTORY),
        "dataset_dir": ".",
        "dataset": _NAMES["train"],
        "eval_dataset": _NAMES["validation"],
        "template": "empty",
        "cutoff_len": recipe.max_length,
        "train_on_prompt": False,
        "packing": False,
        "early_stopping_steps": recipe.patience,
        **training_arguments(recipe, "llamafactory-run"),
    }
