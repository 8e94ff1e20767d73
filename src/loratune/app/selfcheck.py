"""The exactness rule checked on the user's model, and reported in numbers."""

from __future__ import annotations

import sys
from dataclasses import asdict, astuple
from json import dumps
from typing import get_args

from rich.table import Table

from loratune.engine.selfcheck import SelfCheck
from loratune.engine.selfcheck import selfcheck as compare
from loratune.errors import InputError, printable
from loratune.model.base import BaseModel, load_model
from loratune.model.device import DType
from loratune.reporting.screen import Screen
from loratune.runners.spec import model_cache

DEVIATES = 1
"""Exit code where the pack deviates from PEFT by more than PEFT from itself."""


def selfcheck(*, model: str, dtype: str = "float32", device: str = "auto", steps: int = 8) -> SelfCheck:
    """Train six mixed trials in a pack and each alone by plain PEFT, on random tokens; see `SelfCheck.holds`."""
    return compare(_load(model, dtype, device, steps), steps=steps)


def _load(model: str, dtype: str, device: str, steps: int) -> BaseModel:
    if dtype not in get_args(DType):
        raise InputError(
            f"--dtype must be one of {', '.join(get_args(DType))}, got {dtype!r}; give e.g. --dtype float32."
        )
    if steps < 1:
        raise InputError(f"--steps must be at least 1, got {steps}; give e.g. --steps 8.")
    return load_model(model, dtype=dtype, device=device, cache=model_cache())  # type: ignore[arg-type]


def selfcheck_command(*, model: str, dtype: str, device: str, steps: int, as_json: bool) -> int:
    """Print deviation beside noise floor; returns the exit code, 1 where the rule does not hold."""
    print("Training six mixed trials in a pack, then each alone by plain PEFT, four times.", file=sys.stderr)
    base = _load(model, dtype, device, steps)
    for note in base.profile.notes:
        print(printable(note), file=sys.stderr)
    check = compare(base, steps=steps)
    if as_json:
        print(dumps({"holds": check.holds, **asdict(check)}, default=str))
    else:
        _print(check)
    return 0 if check.holds else DEVIATES


def _print(check: SelfCheck) -> None:
    table = Table(title=f"Packed / plain PEFT's own noise, {check.steps} steps, relative deviations")
    for name in ("trial", "loss", "adapter's norm", "adapter's weights", ""):
        table.add_column(name, justify="left" if name == "trial" else "right")
    for each in check.trials:
        values = each.trial.hyper_parameters
        pairs = zip(astuple(each.pack), astuple(each.noise), strict=True)
        table.add_row(
            f"r {values.r}, LR {values.learning_rate:g}, batch {values.batch_size}, dropout {values.lora_dropout:g}",
            *(f"{pack:.0e} / {noise:.0e}" for pack, noise in pairs),
            "✓" if each.holds else "✗",
        )
    console = Screen()
    console.print(table)
    console.print(*check.paths, sep="\n", highlight=False)
    floor = check.trials[0].floor
    rounded = (
        "" if check.trials[0].format is None else ", or no larger than what half precision itself rounds"
    )
    words = (
        "The rule holds: every deviation is within three times PEFT's own noise (its rows padded, its batches cut "
        f"into rows), or below the rounding floor of loss {floor.loss:.0e}, norm {floor.norm:.0e}, "
        f"weights {floor.weights:.0e}{rounded}."
        if check.holds
        else "The rule does not hold on this model: please report it with `loratune doctor --json`."
    )
    console.print(words, highlight=False)
