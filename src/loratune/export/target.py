"""What every export target is: which rows it reads, and its files as a pure function of the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import yaml

from loratune.errors import InputError
from loratune.export.recipe import Recipe
from loratune.export.rows import Format
from loratune.values.hyperparameters import PLAIN_LORA

DATA = {"train": "data/train.jsonl", "validation": "data/validation.jsonl"}
"""Files of rows by split, unless a target reads others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """The files of one export."""

    files: Mapping[str, str]
    """Text by name."""
    command: str = ""
    """What runs it in its folder; empty where nothing is run."""
    losses: tuple[str, ...] = ()
    """What is not repeated there, a sentence each."""
    data: Mapping[str, str] = field(default_factory=lambda: DATA)
    """Files of rows by split; empty where the target takes none."""


class Target(Protocol):
    """A trainer."""

    @property
    def name(self) -> str:
        """The name that follows `--to`."""

    @property
    def formats(self) -> tuple[Format, ...]:
        """Shapes of rows, the best first; the first that holds all rows exactly is taken, else the last."""

    def export(self, recipe: Recipe, rows: str) -> Exported:
        """`rows` is the name of the format taken. Raises `InputError` for what the target cannot express."""


def to_yaml(values: Mapping[str, Any], comment: str) -> str:
    """YAML in the given order, under a comment."""
    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=110)
    return f"{comment}{text}"


def refuse(target: str, what: str, step: str) -> InputError:
    """One sentence for a value that a target cannot express."""
    return InputError(f"{target} {what}; {step}.")


def demand_whole_alphas(recipe: Recipe, target: str) -> None:
    """Raise `InputError` where an alpha is not whole and the target's configuration wants whole ones."""
    for alpha in (recipe.alpha, *recipe.alpha_pattern.values()):
        if not isinstance(alpha, int):
            raise refuse(
                target, f"takes whole numbers for alpha, got {alpha}", "export --to peft or --to trl"
            )


def demand_known(recipe: Recipe, target: str, *known: str) -> None:
    """Raise `InputError` where the run's adapter is a variant of LoRA that the target has no setting for.

    `known`: fields of `HyperParameters` that it has one for.
    """
    chosen = recipe.hyper_parameters
    plain = replace(chosen, **{name: usual for name, usual in PLAIN_LORA.items() if name in known})
    if plain.variant:
        raise refuse(
            target,
            f"cannot repeat {plain.variant}, with which this run was trained",
            "export --to transformers, axolotl or peft",
        )


def demand_one_rank(recipe: Recipe, target: str) -> None:
    """Raise `InputError` where layers have ranks of their own and the target knows one for all."""
    if recipe.rank_pattern:
        count = len(recipe.rank_pattern)
        raise refuse(
            target,
            f"takes one rank for all layers, but {count} of this run's have their own (rank_pattern)",
            "export --to peft, trl, axolotl or unsloth, or tune without --layer-ranks",
        )
