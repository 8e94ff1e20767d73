"""Axolotl: a YAML file for `axolotl train`, with rows as labelled segments, which carry every shape."""

from __future__ import annotations

from typing import Any, ClassVar

from loratune.export.recipe import BETAS, CLIP, EPSILON, Recipe
from loratune.export.rows import Format, Segments, Tokens
from loratune.export.target import DATA, Exported, demand_whole_alphas, to_yaml


class Axolotl:
    name: ClassVar[str] = "axolotl"
    formats: ClassVar[tuple[Format, ...]] = (Segments(), Tokens())

    def export(self, recipe: Recipe, rows: str) -> Exported:
        demand_whole_alphas(recipe, "Axolotl")
        return Exported(
            files={"axolotl.yaml": to_yaml(_yaml(recipe, rows), recipe.comment)},
            command="axolotl train axolotl.yaml",
        )


def _yaml(recipe: Recipe, rows: str) -> dict[str, Any]:
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
