"""TRL again, for runs that learnt from preference pairs: a script with its trainer of the run's objective.

`bench/preference_reference.py` compares both trainers with a pack of ours, step by step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from loratune.export.recipe import Recipe, as_code, lora_arguments, training_arguments
from loratune.export.rows import Format, PreferencePairs
from loratune.export.target import Exported, Target, demand_known, refuse
from loratune.values.tasks import GAMMA_OF_BETA, task_of

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


class _Trainer(NamedTuple):
    """TRL's, for one objective."""

    module: str
    name: str
    arguments: Mapping[str, Any]
    """Beside those of every run; numbers that are a share of beta stand in `of_beta`."""
    of_beta: Mapping[str, float]


_TRAINERS: Mapping[str, _Trainer] = {
    "dpo": _Trainer("trl", "DPO", {}, {}),
    "simpo": _Trainer(
        "trl.experimental.cpo",
        "CPO",
        {"loss_type": "simpo", "cpo_alpha": 0.0},
        {"simpo_gamma": GAMMA_OF_BETA},
    ),
}
_MISSING = {"orpo": "adds the likelihood of the prompt to ORPO's loss, which this run did not learn"}
"""Why TRL cannot repeat a run, by objective."""


class TrlPreference:
    """DPO by `DPOTrainer`, whose reference is the model without its adapter; SimPO by the experimental `CPOTrainer`."""

    name: ClassVar[str] = "trl"
    formats: ClassVar[tuple[Format, ...]] = (PreferencePairs(),)

    def export(self, recipe: Recipe, rows: str) -> Exported:
        """Raises `InputError` for an objective that TRL has no trainer of."""
        trainer = _TRAINERS.get(recipe.objective)
        if trainer is None:
            raise refuse(
                "trl",
                _MISSING.get(recipe.objective, f"has no trainer for the objective {recipe.objective}"),
                f"export --to peft, or tune with --objective {' or '.join(_TRAINERS)}",
            )
        demand_known(recipe, "TRL", "use_rslora", "use_dora")
        script = _SCRIPT.format(
            comment=recipe.comment,
            module=trainer.module,
            trainer=trainer.name,
            seed=recipe.seed,
            model=recipe.model,
            end=recipe.end_of_turn,
            patience=recipe.patience,
            loading=as_code({"dtype": recipe.dtype, **_quantised(recipe)}),
            adapter=as_code(lora_arguments(recipe)),
            arguments=as_code(_arguments(recipe, trainer)),
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
    if not task_of(recipe.objective).has_pairs or not target.formats:
        return target
    if target.name != TrlPreference.name:
        raise refuse(
            target.name,
            f"is written for completions here, and this run learnt preferences ({recipe.objective})",
            "export --to trl or peft",
        )
    return TrlPreference()


def _arguments(recipe: Recipe, trainer: _Trainer) -> dict[str, Any]:
    beta = recipe.hyper_parameters.beta
    assert beta is not None, "every preference run has one"
    return {
        **training_arguments(recipe, "checkpoints"),
        "beta": beta,
        "max_length": recipe.max_length,
        "gradient_checkpointing": True,
        **trainer.arguments,
        **{name: share * beta for name, share in trainer.of_beta.items()},
    }


def _quantised(recipe: Recipe) -> dict[str, Any]:
    return {"quantization_config": dict(recipe.quantisation)} if recipe.four_bits else {}
