"""The exactness rule checked on the user's model, and told in numbers."""

from __future__ import annotations

from dataclasses import asdict
from json import dumps
from typing import get_args

from rich.console import Console
from rich.table import Table

from loratune.app.workbench import model_cache
from loratune.engine.selfcheck import SelfCheck
from loratune.engine.selfcheck import selfcheck as compare
from loratune.errors import InputError
from loratune.model.load import load_model
from loratune.model.precision import DType

DEVIATES = 1
"""Exit code where the pack deviates from PEFT by more than PEFT from itself."""


def selfcheck(*, model: str, dtype: str = "float32", device: str = "auto", steps: int = 20) -> SelfCheck:
    """Train six mixed trials in a pack and each alone by plain PEFT, on random tokens; see `SelfCheck.holds`."""
    if dtype not in get_args(DType):
        raise InputError(
            f"--dtype must be one of {', '.join(get_args(DType))}, got {dtype!r}; change --dtype."
        )
    if steps < 1:
        raise InputError(f"--steps must be at least 1, got {steps}; raise --steps.")
    base = load_model(model, dtype=dtype, device=device, cache=model_cache())  # type: ignore[arg-type]
    return compare(base, steps=steps)


def selfcheck_command(*, model: str, dtype: str, device: str, steps: int, as_json: bool) -> int:
    """Print deviation beside noise floor; returns the exit code, 1 where the rule does not hold."""
    check = selfcheck(model=model, dtype=dtype, device=device, steps=steps)
    if as_json:
        print(dumps({"holds": check.holds, **asdict(check)}, default=str))
    else:
        _print(check)
    return 0 if check.holds else DEVIATES


def _print(check: SelfCheck) -> None:
    table = Table(title=f"Packed against plain PEFT, {check.steps} steps, relative deviations")
    for name in ("trial", "loss: pack", "noise", "adapter: pack", "noise", ""):
        table.add_column(name, justify="left" if name == "trial" else "right")
    for each in check.trials:
        values = each.trial.hyper_parameters
        table.add_row(
            f"r {values.r}, alpha {values.lora_alpha:g}, LR {values.learning_rate:g}, batch {values.batch_size}, "
            f"dropout {values.lora_dropout:g}",
            f"{each.pack.loss:.1e}",
            f"{each.noise.loss:.1e}",
            f"{each.pack.norm:.1e}",
            f"{each.noise.norm:.1e}",
            "✓" if each.holds else "✗",
        )
    console = Console()
    console.print(table)
    words = (
        "The rule holds: no trial is further from PEFT than three times PEFT's own noise (other padding)."
        if check.holds
        else "The rule does not hold on this model: please report it with `loratune doctor --json`."
    )
    console.print(words)
