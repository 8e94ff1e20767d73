"""Which modules a list of target names means, and which ranks they allow. Names and shapes only."""

from collections.abc import Sequence

from loratune.errors import HyperParameterError, ModelError
from loratune.values import ALL_LINEAR

Shape = tuple[str, int, int]
"""(full module name, in features, out features)"""


def select_targets(available: Sequence[Shape], target_modules: Sequence[str]) -> tuple[Shape, ...]:
    """The modules that PEFT would adapt: all, or those whose name is, or ends in `.` and, a target name.

    Keeps the order of `available`. Raises `ModelError` for names that match nothing.
    """
    if tuple(target_modules) == ALL_LINEAR:
        return tuple(available)

    def matches(name: str, target: str) -> bool:
        return name == target or name.endswith(f".{target}")

    unknown = [t for t in target_modules if not any(matches(name, t) for name, _, _ in available)]
    if unknown:
        raise ModelError(
            f"target_modules must name linear layers that can be adapted, {', '.join(unknown)} matches none; "
            f"choose from {', '.join(short_names(available))}."
        )
    return tuple(s for s in available if any(matches(s[0], target) for target in target_modules))


def short_names(targets: Sequence[Shape]) -> tuple[str, ...]:
    """The distinct last components of the modules' names, in order of first appearance."""
    return tuple(dict.fromkeys(name.rpartition(".")[2] for name, _, _ in targets))


def check_rank(targets: Sequence[Shape], r: int) -> None:
    """Raise `HyperParameterError` where a rank exceeds the smallest dimension of a targeted layer."""
    name, inputs, outputs = min(targets, key=lambda target: min(target[1:]))
    if r > min(inputs, outputs):
        raise HyperParameterError(
            f"r must be at most {min(inputs, outputs)}, the smaller side of {name} ({inputs} to {outputs}), "
            f"got {r}; lower --rank or leave that layer out."
        )
