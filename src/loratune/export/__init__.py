"""The targets of `loratune export --to`, by name."""

from __future__ import annotations

from loratune.errors import InputError
from loratune.export.mlx import Mlx
from loratune.export.target import Target
from loratune.export.transformers import Peft, Transformers
from loratune.export.trl import Trl, Unsloth
from loratune.export.yaml_files import Axolotl, LlamaFactory

TARGETS: dict[str, Target] = {
    each.name: each for each in (Peft(), Transformers(), Trl(), Axolotl(), LlamaFactory(), Unsloth(), Mlx())
}


def find_target(name: str) -> Target:
    """Raises `InputError` for a name that is none."""
    if name not in TARGETS:
        raise InputError(
            f"--to must be one of {', '.join(TARGETS)}, got {name!r}; give for example --to trl."
        )
    return TARGETS[name]
