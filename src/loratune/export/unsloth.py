"""Unsloth: a script with FastLanguageModel and TRL's SFTTrainer; its YAML knows neither schedule nor betas."""

from __future__ import annotations

from typing import ClassVar

from loratune.export.recipe import Recipe, as_code, lora_arguments
from loratune.export.rows import Format, Tokens
from loratune.export.target import Exported
from loratune.export.trl import sft_arguments

_SCRIPT = """{comment}
from pathlib import Path

from unsloth import FastLanguageModel  # first, as it changes what follows
import torch
from datasets import load_dataset
from transformers import EarlyStoppingCallback, set_seed
from trl import SFTConfig, SFTTrainer

HERE = Path(__file__).parent


def main() -> None:
    set_seed({seed})
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name={model!r},
        max_seq_length={max_length},
        dtype=torch.{dtype},
        load_in_4bit={four_bits},
    )
    tokenizer.eos_token = {end!r}
    model = FastLanguageModel.get_peft_model(
        model,
{adapter}    )
    rows = load_dataset(str(HERE / "data"))
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        args=SFTConfig(**ARGUMENTS),
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        callbacks=[EarlyStoppingCallback(early_stopping_patience={patience})],
    )
    trainer.train()
    print(trainer.evaluate())
    model.save_pretrained(str(HERE / "adapter"))


ARGUMENTS = dict(
{arguments})

if __name__ == "__main__":
    main()
"""


class Unsloth:
    name: ClassVar[str] = "unsloth"
    formats: ClassVar[tuple[Format, ...]] = (Tokens(),)

    def export(self, recipe: Recipe, rows: str) -> Exported:
        adapter = {name: value for name, value in lora_arguments(recipe).items() if name != "task_type"}
        arguments = sft_arguments(recipe, rows, "checkpoints")
        del arguments["gradient_checkpointing"]  # Unsloth's own, below
        script = _SCRIPT.format(
            comment=recipe.comment,
            seed=recipe.seed,
            model=recipe.model,
            max_length=recipe.max_length,
            dtype=recipe.dtype,
            four_bits=recipe.four_bits,
            end=recipe.end_of_turn,
            patience=recipe.patience,
            adapter=as_code(
                {**adapter, "random_state": recipe.seed, "use_gradient_checkpointing": "unsloth"}, " " * 8
            ),
            arguments=as_code(arguments),
        )
        return Exported(
            files={"train.py": script},
            command="python train.py",
            losses=("The rows are written as tokens, since Unsloth tokenises text in its own way.",),
        )
