"""A recipe with known values, for the targets' tests."""

from typing import Any

from loratune.export.recipe import Recipe
from loratune.values import HyperParameters
from loratune.values.hyperparameters import VARIANT

LAYERS = ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj")


def recipe(**changes: Any) -> Recipe:
    """1,000 rows in batches of 12 for 2 epochs: 168 steps. Fields of `HyperParameters` may be changed as well."""
    chosen = {
        "r": 8, "lora_alpha": 16.0, "learning_rate": 3e-4, "batch_size": 12, "lora_dropout": 0.05,
        "weight_decay": 0.01, "epochs": 2.0, "warmup_ratio": 0.05, "target_modules": ("q_proj",),
    }  # fmt: skip
    chosen |= {
        name: changes.pop(name) for name in list(changes) if name in {*chosen, "rank_pattern", *VARIANT}
    }
    values: dict[str, Any] = {
        "model": "owner/base", "hyper_parameters": HyperParameters(**chosen), "modules": LAYERS, "steps": 168,
        "warmup_steps": 9, "rows": 1000, "max_length": 96, "evaluations": 10, "patience": 3, "seed": 7,
        "dtype": "bfloat16", "end_of_turn": "<|end|>", "origin": "Hyper-parameters found by loratune (mine).",
    }  # fmt: skip
    return Recipe(**values | changes)


PATTERN = ((LAYERS[0], 4), (LAYERS[1], 2))
