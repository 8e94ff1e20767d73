"""TRL again, for runs that learnt from preference pairs: a script with its trainer of the run's objective.

`bench/preference_reference.py` compares both trainers with a pack of ours, step by step.
"""

from __future__ import annotations

from typing import Any, ClassVar

from loratune.export.recipe import Recipe, as_code, lora_arguments, training_arguments
from loratune.export.rows import Format, PreferencePairs
from loratune.export.target import Exported, Target, demand_known, refuse
from loratune.values.tasks import CAUSAL, GAMMA_OF_BETA

_SCRIPT = """{comment}
from pathlib import Path

from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, EarlyStoppingCallback, set_seed
from {module} import {trainer}Config, {trainer}Trainer

HERE = Path(__file__).parent


def main() -> None:
    set_seed({seed})
    rows = load_dataset(str(HERE / "data"))
    tokenizer = AutoTokenizer.from_pretrained({model!r})
    tokenizer.eos_token = {end!r}
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    base = AutoModelForCausalLM.from_pretrained({model!r}, **MODEL)
    trainer = {trainer}Trainer(
        model=get_peft_model(base, LoraConfig(**ADAPTER)),
        args={trainer}Config(**ARGUMENTS),
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        processing_class=tokenizer,
        callbacks=[EarlyStoppingCallback(early_stopping_patience={patience})],
    )
    trainer.train()
    print(trainer.evaluate())
    trainer.save_model(str(HERE / "adapter"))


MODEL = dict(
{loading})
ADAPTER = dict(
{adapter})
ARGUMENTS = dict(
{arguments})

if __name__ == "__main__":
    main()
"""


class TrlPreference:
    """DPO by `DPOTrainer`, whose reference is the model without its adapter; SimPO by the experimental `CPOTrainer`."""

    name: ClassVar[str] = "trl"
    formats: ClassVar[tuple[Format, ...]] = (PreferencePairs(),)

    def export(self, recipe: Recipe, rows: str) -> Exported:
        """Raises `InputError` for ORPO, whose loss is another there."""
        if recipe.objective == "orpo":
            raise refuse(
                "trl",
                "adds the likelihood of the prompt to ORPO's loss, which this run did not learn",
                "export --to peft, or tune with --objective dpo or simpo",
            )
        demand_known(recipe, "TRL", "use_rslora")
        script = _SCRIPT.format(
            comment=recipe.comment,
            module="trl" if recipe.objective == "dpo" else "trl.experimental.cpo",
            trainer="DPO" if recipe.objective == "dpo" else "CPO",
            seed=recipe.seed,
            model=recipe.model,
            end=recipe.end_of_turn,
            patience=recipe.patience,
            loading=as_code({"dtype": recipe.dtype, **_quantised(recipe)}),
            adapter=as_code(lora_arguments(recipe)),
            arguments=as_code(_arguments(recipe)),
        )
        return Exported(
            files={"train.py": script},
            command="python train.py",
            losses=(
                "TRL keeps the weights of the smallest validation loss, as this run's final training did.",
            ),
        )


def serving(target: Target, recipe: Recipe) -> Target:
    """The target itself, or for preferences TRL's other one. Raises `InputError` where it has none."""
    if recipe.objective == CAUSAL or not target.formats:
        return target
    if target.name != TrlPreference.name:
        raise refuse(
            target.name,
            f"is written for completions here, and this run learnt preferences ({recipe.objective})",
            "export --to trl or peft",
        )
    return TrlPreference()


def _arguments(recipe: Recipe) -> dict[str, Any]:
    beta = recipe.hyper_parameters.beta
    assert beta is not None, "every preference run has one"
    simple = {"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": GAMMA_OF_BETA * beta}
    return {
        **training_arguments(recipe, "checkpoints"),
        "beta": beta,
        "max_length": recipe.max_length,
        "gradient_checkpointing": True,
        **(simple if recipe.objective == "simpo" else {}),
    }


def _quantised(recipe: Recipe) -> dict[str, Any]:
    return {"quantization_config": dict(recipe.quantisation)} if recipe.four_bits else {}
