"""PEFT's adapter configuration, and a script for the plain Trainer on the rows' own tokens."""

from __future__ import annotations

from json import dumps
from typing import ClassVar

from loratune.export.recipe import BETAS, EPSILON, Recipe, as_code, lora_arguments, training_arguments
from loratune.export.rows import Format, Segments, Tokens
from loratune.export.target import DATA, Exported


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


_SCRIPT = """{comment}
from pathlib import Path

import torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
{imports}from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    EarlyStoppingCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

HERE = Path(__file__).parent
MODEL = {model!r}


def main() -> None:
    set_seed({seed})
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.eos_token = {end!r}
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    rows = load_dataset("json", data_files={{name: str(HERE / file) for name, file in {data!r}.items()}})
{encode}
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.{dtype}{quantised})
    model = get_peft_model(model, LoraConfig(**ADAPTER))
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**ARGUMENTS),
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
        callbacks=[EarlyStoppingCallback(early_stopping_patience={patience})],{optimiser}
    )
    trainer.train()
    print(trainer.evaluate())
    model.save_pretrained(HERE / "adapter")
    tokenizer.save_pretrained(HERE / "adapter")


ADAPTER = dict(
{adapter})
ARGUMENTS = dict(
{arguments})

if __name__ == "__main__":
    main()
"""

_ENCODE = """
    def encode(row: dict) -> dict:
        tokens, labels = [], []
        for segment in row["segments"]:  # one by one, so that the completion begins where it will in use
            ids = tokenizer(segment["text"], add_special_tokens=False).input_ids
            tokens += ids
            labels += ids if segment["label"] else [-100] * len(ids)
        return {"input_ids": tokens, "labels": labels, "attention_mask": [1] * len(tokens)}

    rows = rows.map(encode, remove_columns=["segments"])
"""


def _loraplus(recipe: Recipe) -> str:
    """The Trainer's argument where B has a learning rate of its own; the schedule stays the Trainer's."""
    chosen = recipe.hyper_parameters
    if chosen.loraplus_lr_ratio == 1:
        return ""
    values = {
        "lr": chosen.learning_rate,
        "loraplus_lr_ratio": chosen.loraplus_lr_ratio,
        "loraplus_weight_decay": chosen.weight_decay,
        "betas": BETAS,
        "eps": EPSILON,
    }
    code = as_code(values, " " * 12)
    call = f"create_loraplus_optimizer(\n            model,\n            torch.optim.AdamW,\n{code}        )"
    return f"\n        optimizers=({call}, None),"


class Transformers:
    name: ClassVar[str] = "transformers"
    formats: ClassVar[tuple[Format, ...]] = (Segments(), Tokens())

    def export(self, recipe: Recipe, rows: str) -> Exported:
        script = _SCRIPT.format(
            comment=recipe.comment,
            model=recipe.model,
            seed=recipe.seed,
            end=recipe.end_of_turn,
            data=DATA,
            encode=_ENCODE if rows == "segments" else "",
            dtype=recipe.dtype,
            optimiser=_loraplus(recipe),
            imports="from peft.optimizers import create_loraplus_optimizer\n" if _loraplus(recipe) else "",
            quantised=f", quantization_config={dict(recipe.quantisation)!r}" if recipe.four_bits else "",
            patience=recipe.patience,
            adapter=as_code(lora_arguments(recipe)),
            arguments=as_code(training_arguments(recipe, "checkpoints")),
        )
        return Exported(files={"train.py": script}, command="python train.py")
