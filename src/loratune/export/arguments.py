"""A recipe as transformers' TrainingArguments, which TRL, LLaMA-Factory and Unsloth share."""

from __future__ import annotations

from typing import Any

from loratune.export.recipe import Recipe

BETAS, EPSILON, CLIP = (0.9, 0.999), 1e-8, 1.0
"""Of AdamW, and the norm that gradients are clipped to, as every trial is trained."""


def training_arguments(recipe: Recipe, output: str) -> dict[str, Any]:
    """Keyword arguments under transformers' names, nothing left to a default that would change the result."""
    chosen = recipe.hyper_parameters
    half = recipe.dtype == "bfloat16"
    return {
        "output_dir": output,
        "learning_rate": chosen.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": recipe.warmup_steps,  # whole steps: a number below 1 would be a share of them
        "num_train_epochs": float(chosen.epochs),
        "per_device_train_batch_size": recipe.micro_batch,
        "gradient_accumulation_steps": recipe.accumulation,
        "per_device_eval_batch_size": recipe.micro_batch,
        "optim": "adamw_torch",
        "weight_decay": chosen.weight_decay,
        "adam_beta1": BETAS[0],
        "adam_beta2": BETAS[1],
        "adam_epsilon": EPSILON,
        "max_grad_norm": CLIP,
        "seed": recipe.seed,
        "bf16": half,
        "logging_steps": max(1, min(10, recipe.steps // 10)),
        "eval_strategy": "steps",
        "eval_steps": recipe.steps_between_looks,
        "save_strategy": "steps",
        "save_steps": recipe.steps_between_looks,
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
        "report_to": "none",
    }


def lora_arguments(recipe: Recipe) -> dict[str, Any]:
    """Keyword arguments of `peft.LoraConfig`; a rank pattern goes with its alpha pattern, which keeps the scaling."""
    chosen = recipe.hyper_parameters
    patterns = {"rank_pattern": recipe.rank_pattern, "alpha_pattern": recipe.alpha_pattern}
    return {
        "task_type": "CAUSAL_LM",
        "r": chosen.r,
        "lora_alpha": recipe.alpha,
        "lora_dropout": chosen.lora_dropout,
        "target_modules": list(chosen.target_modules),
        "bias": "none",
        **(patterns if recipe.rank_pattern else {}),
    }


def as_code(values: dict[str, Any], indent: str = "    ") -> str:
    """Keyword arguments in Python, one a line."""
    return "".join(f"{indent}{name}={value!r},\n" for name, value in values.items())
