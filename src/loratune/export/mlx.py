"""mlx-lm: a YAML file for `mlx_lm.lora`, and a script where rows have prompts, as the command wraps these
in the chat template."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from loratune.export.recipe import BETAS, EPSILON, Recipe
from loratune.export.rows import Format, PlainText, PromptCompletion
from loratune.export.target import Exported, demand_known, demand_one_rank, refuse, to_yaml

_LAYER = re.compile(r"^(?P<layer>.*?\.(?:layers|h|blocks)\.\d+)\.(?P<key>.+)$")

_SCRIPT = """{comment}
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import yaml
from mlx_lm import lora
from mlx_lm.tuner.datasets import load_dataset
from mlx_lm.utils import load

VERBATIM = "{{% for message in messages %}}{{{{ message['content'] }}}}{{% endfor %}}"


def main() -> None:
    os.chdir(Path(__file__).parent)
    values = yaml.safe_load(Path("mlx.yaml").read_text())
    args = SimpleNamespace(**{{**lora.CONFIG_DEFAULTS, **values}})
    np.random.seed(args.seed)
    model, tokenizer = load(args.model)
    tokenizer.chat_template = VERBATIM  # the rows hold prompt and completion as they were trained
    train, validation, _ = load_dataset(args, tokenizer)
    lora.train_model(args, model, train, validation)


if __name__ == "__main__":
    main()
"""


_WHOLE = (
    "mlx-lm has 4-bit bases of its own format only (mlx_lm.convert -q); here it loads whole weights, the run's were in "
    "bitsandbytes' NF4.",
)


class Mlx:
    name: ClassVar[str] = "mlx"
    formats: ClassVar[tuple[Format, ...]] = (PlainText(), PromptCompletion(special=False))

    def export(self, recipe: Recipe, rows: str) -> Exported:
        demand_one_rank(recipe, "mlx-lm")
        demand_known(recipe, "mlx-lm", "use_rslora")  # which is in its scale
        prompted = rows == PromptCompletion.name
        files = {"mlx.yaml": to_yaml(_yaml(recipe, prompted), recipe.comment)}
        if prompted:
            files["train.py"] = _SCRIPT.format(comment=recipe.comment)
        return Exported(
            files=files,
            command="python train.py" if prompted else "mlx_lm.lora --config mlx.yaml",
            data={"train": "data/train.jsonl", "validation": "data/valid.jsonl"},
            losses=(
                "mlx-lm does not clip gradients (here: to norm 1).",
                "mlx-lm leaves out the last rows of an epoch that do not fill a batch, and keeps its batches from "
                f"epoch to epoch; {recipe.steps} steps are run all the same.",
                f"mlx-lm has no early stopping: the adapter is saved every {recipe.steps_between_looks} steps; "
                "take that of the lowest validation loss.",
                *(_WHOLE if recipe.four_bits else ()),
            ),
        )


def _keys(recipe: Recipe) -> list[str]:
    """Names of the adapted modules within a layer. Raises `InputError` where layers differ in them."""
    by_layer: dict[str, set[str]] = {}
    for name in recipe.modules:
        found = _LAYER.match(name)
        layer, key = (found["layer"], found["key"]) if found else ("", name)
        by_layer.setdefault(layer, set()).add(key)
    keys = [frozenset(each) for layer, each in by_layer.items() if layer]
    if len(set(keys)) > 1:
        raise refuse(
            "mlx-lm", "adapts the same modules in every layer, but here they differ", "export --to peft"
        )
    return sorted(set().union(*by_layer.values()))


def _yaml(recipe: Recipe, prompted: bool) -> dict[str, Any]:
    chosen = recipe.hyper_parameters
    warmup = recipe.warmup_steps
    # the rise takes one step more than its name says, so that the fall has one less
    fall = max(1, recipe.steps - warmup - 1 if warmup else recipe.steps)
    return {
        "model": recipe.model,
        "train": True,
        "fine_tune_type": "lora",
        "data": "data",
        "mask_prompt": prompted,
        "seed": recipe.seed,
        "num_layers": -1,
        "lora_parameters": {
            "keys": _keys(recipe),
            "rank": chosen.r,
            "scale": chosen.scaling,
            "dropout": chosen.lora_dropout,
        },
        "iters": recipe.steps,
        "batch_size": chosen.batch_size,
        "grad_accumulation_steps": 1,  # its mean over parts of a batch would not weigh tokens alike
        "max_seq_length": recipe.max_length,
        "learning_rate": chosen.learning_rate,
        "lr_schedule": {
            "name": "linear_schedule",
            "warmup": warmup,
            "warmup_init": 0.0,
            "arguments": [chosen.learning_rate, 0.0, fall],
        },
        "optimizer": "adamw",
        "optimizer_config": {
            "adamw": {
                "betas": list(BETAS),
                "eps": EPSILON,
                "weight_decay": chosen.weight_decay,
                "bias_correction": True,
            }
        },
        "grad_checkpoint": True,
        "val_batches": -1,
        "steps_per_report": max(1, min(10, recipe.steps // 10)),
        "steps_per_eval": recipe.steps_between_looks,
        "save_every": recipe.steps_between_looks,
        "adapter_path": "adapters",
    }
