"""PEFT: the configuration of the adapter, as `LoraConfig.from_pretrained` reads it. No training."""

from __future__ import annotations

from json import dumps
from typing import ClassVar

from loratune.export.arguments import lora_arguments
from loratune.export.recipe import Recipe
from loratune.export.rows import Format
from loratune.export.target import Exported


class Peft:
    name: ClassVar[str] = "peft"
    formats: ClassVar[tuple[Format, ...]] = ()

    def export(self, recipe: Recipe, rows: str) -> Exported:
        values = {"peft_type": "LORA", "base_model_name_or_path": recipe.model, **lora_arguments(recipe)}
        return Exported(
            files={"adapter_config.json": dumps(values, indent=2) + "\n"},
            data={},
            losses=(
                "PEFT's configuration holds the adapter alone: learning rate, batch size, epochs and seed are "
                "exported by --to transformers or --to trl.",
            ),
        )
