"""What a tuned run is in any trainer: plain values, from which every target writes its own files.

Knows no target, no files and no libraries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loratune.values import PLAIN, HyperParameters
from loratune.values.tasks import CAUSAL

_MOST_ROWS = 8
"""Most rows of one forward pass, so that a batch of the recipe fits where a single adapter is trained."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A run to be repeated. Everything is resolved: steps are whole, modules have their names."""

    model: str
    """Folder or hub name of the base model."""
    hyper_parameters: HyperParameters
    """`target_modules` are the names that PEFT's config has."""
    modules: tuple[str, ...]
    """Full names of all adapted modules."""
    steps: int
    """Optimiser steps of all epochs."""
    warmup_steps: int
    rows: int
    """Training rows of one epoch."""
    max_length: int
    """Tokens of the longest row."""
    evaluations: int
    """Evaluations on the validation rows, of which the best weights were kept."""
    patience: int
    """Evaluations without improvement before it stopped."""
    seed: int
    dtype: str
    """Type of the base weights, or of the computation if they are in 4 bits: `bfloat16`, `float32` or `float64`."""
    end_of_turn: str
    """The token that ends a completion, as text."""
    origin: str
    """Comment that says where the values come from, one line."""
    weight_format: str = PLAIN
    """How the base's linear layers were held: `plain`, or `nf4` (4 bits)."""
    modules_to_save: tuple[str, ...] = ()
    """PEFT's names of a classifier's head."""
    objective: str = CAUSAL.objective
    """What was learnt: `causal`, `dpo`, `orpo` or `simpo`."""

    @property
    def four_bits(self) -> bool:
        """Whether the base model was in 4 bits."""
        return self.weight_format != PLAIN

    @property
    def quantisation(self) -> Mapping[str, Any]:
        """transformers' `quantization_config`, as a dictionary; empty where weights are plain."""
        if not self.four_bits:
            return {}
        return {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": self.weight_format,
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": self.dtype,
        }

    @property
    def micro_batch(self) -> int:
        """Rows of one forward pass: the largest divisor of the batch size up to 8."""
        batch = self.hyper_parameters.batch_size
        return max(size for size in range(1, min(_MOST_ROWS, batch) + 1) if batch % size == 0)

    @property
    def accumulation(self) -> int:
        """Forward passes of one optimiser step."""
        return self.hyper_parameters.batch_size // self.micro_batch

    @property
    def steps_between_looks(self) -> int:
        """Optimiser steps from one evaluation to the next."""
        return max(1, self.steps // self.evaluations)

    @property
    def alpha(self) -> float | int:
        """8.0 as 8: configurations declare a whole alpha."""
        return whole(self.hyper_parameters.lora_alpha)

    @property
    def rank_pattern(self) -> Mapping[str, int]:
        """Rank by full module name where it is not `r`."""
        return dict(self.hyper_parameters.rank_pattern)

    @property
    def alpha_pattern(self) -> Mapping[str, float | int]:
        """Alpha by full module name, in proportion to its rank: PEFT divides it by the module's own rank."""
        return {name: whole(alpha) for name, alpha in self.hyper_parameters.alpha_pattern.items()}

    @property
    def comment(self) -> str:
        """The first lines of every file."""
        share = self.hyper_parameters.warmup_ratio
        return (
            f"# {' '.join(self.origin.split())}\n"
            f"# {self.rows} rows, {self.hyper_parameters.batch_size} a step, {self.hyper_parameters.epochs:g} epochs: "
            f"{self.steps} steps, {self.warmup_steps} of them warm-up ({share:.3g} of the steps).\n"
        )


def whole(value: float) -> float | int:
    """8.0 as 8."""
    return int(value) if value == int(value) else value


BETAS, EPSILON, CLIP = (0.9, 0.999), 1e-8, 1.0
"""AdamW's settings, and the norm that gradients are clipped to, as every trial is trained."""


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
        "task_type": "SEQ_CLS" if recipe.modules_to_save else "CAUSAL_LM",
        "r": chosen.r,
        "lora_alpha": recipe.alpha,
        "lora_dropout": chosen.lora_dropout,
        "target_modules": list(chosen.target_modules),
        "bias": "none",
        **({"use_rslora": True} if chosen.use_rslora else {}),
        **({"use_dora": True} if chosen.use_dora else {}),
        **(patterns if recipe.rank_pattern else {}),
        **({"modules_to_save": list(recipe.modules_to_save)} if recipe.modules_to_save else {}),
    }


def as_code(values: dict[str, Any], indent: str = "    ") -> str:
    """Keyword arguments in Python, one a line."""
    return "".join(f"{indent}{name}={value!r},\n" for name, value in values.items())
