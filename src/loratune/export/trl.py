"""TRL: a YAML file for `trl sft --config`, or a script where the YAML cannot carry the adapter; Unsloth on top of it.

Unsloth's script uses FastLanguageModel and TRL's SFTTrainer; its own YAML has neither schedule nor betas.
"""

from __future__ import annotations

from typing import Any, ClassVar

from loratune.export.recipe import Recipe, as_code, lora_arguments, training_arguments
from loratune.export.rows import Format, PlainText, PromptCompletion, Tokens
from loratune.export.target import Exported, demand_known, to_yaml

_SCRIPT = """{comment}
from pathlib import Path

from datasets import load_dataset
from peft import LoraConfig
from transformers import EarlyStoppingCallback, set_seed
from trl import SFTConfig, SFTTrainer

HERE = Path(__file__).parent


def main() -> None:
    set_seed({seed})
    rows = load_dataset(str(HERE / "data"))
    trainer = SFTTrainer(
        model={model!r},
        args=SFTConfig(**ARGUMENTS),
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        peft_config=LoraConfig(**ADAPTER),
        callbacks=[EarlyStoppingCallback(early_stopping_patience={patience})],
    )
    trainer.train()
    print(trainer.evaluate())
    trainer.save_model(str(HERE / "adapter"))


ADAPTER = dict(
{adapter})
ARGUMENTS = dict(
{arguments})

if __name__ == "__main__":
    main()
"""


_FOUR_BITS = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "use_bnb_nested_quant": True}


class Trl:
    name: ClassVar[str] = "trl"
    formats: ClassVar[tuple[Format, ...]] = (PlainText(), PromptCompletion(), Tokens())

    def export(self, recipe: Recipe, rows: str) -> Exported:
        demand_known(recipe, "TRL", "use_rslora", "use_dora")
        if recipe.rank_pattern or not isinstance(recipe.alpha, int):
            return Exported(
                files={"train.py": self._script(recipe, rows)},
                command="python train.py",
                losses=(
                    "TRL's YAML has neither rank_pattern nor a fractional alpha, so this is a script; it repeats "
                    "the run.",
                ),
            )
        return Exported(
            files={"trl.yaml": to_yaml(_yaml(recipe, rows), recipe.comment)},
            command="trl sft --config trl.yaml",
            losses=(
                f"trl sft has no early stopping (here: patience {recipe.patience}): all {recipe.steps} steps are "
                "run, then the best evaluated weights are taken.",
            ),
        )

    def _script(self, recipe: Recipe, rows: str) -> str:
        arguments = {
            **sft_arguments(recipe, rows, "checkpoints"),
            "model_init_kwargs": {"dtype": recipe.dtype, **_quantised(recipe)},
        }
        return _SCRIPT.format(
            comment=recipe.comment,
            seed=recipe.seed,
            model=recipe.model,
            patience=recipe.patience,
            adapter=as_code(lora_arguments(recipe)),
            arguments=as_code(arguments),
        )


def _quantised(recipe: Recipe) -> dict[str, Any]:
    return {"quantization_config": dict(recipe.quantisation)} if recipe.four_bits else {}


def sft_arguments(recipe: Recipe, rows: str, output: str) -> dict[str, Any]:
    """Keyword arguments of TRL's SFTConfig; `rows` is the name of the rows' format."""
    masked = {"completion_only_loss": True} if rows == PromptCompletion.name else {}
    return {
        **training_arguments(recipe, output),
        "max_length": recipe.max_length,
        "packing": False,
        **masked,
        "eos_token": recipe.end_of_turn,
        "gradient_checkpointing": True,
    }


def _yaml(recipe: Recipe, rows: str) -> dict[str, Any]:
    chosen = recipe.hyper_parameters
    return {
        "model_name_or_path": recipe.model,
        "dtype": recipe.dtype,
        **(_FOUR_BITS if recipe.four_bits else {}),
        "dataset_name": "data",
        "dataset_train_split": "train",
        "dataset_test_split": "validation",
        "use_peft": True,
        "lora_r": chosen.r,
        "lora_alpha": recipe.alpha,
        "lora_dropout": chosen.lora_dropout,
        "lora_target_modules": list(chosen.target_modules),
        **({"use_rslora": True} if chosen.use_rslora else {}),
        **({"use_dora": True} if chosen.use_dora else {}),
        **sft_arguments(recipe, rows, "trl-run"),
    }


_UNSLOTH_SCRIPT = """{comment}
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
        demand_known(recipe, "Unsloth", "use_rslora")
        adapter = {name: value for name, value in lora_arguments(recipe).items() if name != "task_type"}
        arguments = sft_arguments(recipe, rows, "checkpoints")
        del arguments["gradient_checkpointing"]  # Unsloth's own, below
        script = _UNSLOTH_SCRIPT.format(
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
