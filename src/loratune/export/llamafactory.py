"""LLaMA-Factory: a YAML file for `llamafactory-cli train`, and the dataset_info.json that names its rows.

The template `empty` adds nothing, so that the rows hold prompts and turns as they were trained.
"""

from __future__ import annotations

from json import dumps
from typing import Any, ClassVar

from loratune.export.recipe import Recipe, training_arguments
from loratune.export.rows import Format, Pairs, Turns
from loratune.export.target import DATA, Exported, demand_one_rank, demand_whole_alphas, to_yaml

_HALF = ("LLaMA-Factory loads the base in its checkpoint's own type, which may not be the run's float32.",)
_FOUR_BITS = {"quantization_bit": 4, "quantization_type": "nf4", "double_quantization": True}
_NAMES = {"train": "loratune_train", "validation": "loratune_validation"}


class LlamaFactory:
    name: ClassVar[str] = "llamafactory"
    formats: ClassVar[tuple[Format, ...]] = (Pairs(), Turns())

    def export(self, recipe: Recipe, rows: str) -> Exported:
        demand_one_rank(recipe, "LLaMA-Factory")
        demand_whole_alphas(recipe, "LLaMA-Factory")
        return Exported(
            files={
                "llamafactory.yaml": to_yaml(_yaml(recipe), recipe.comment),
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


def _yaml(recipe: Recipe) -> dict[str, Any]:
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
