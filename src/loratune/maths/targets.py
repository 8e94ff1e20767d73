"""Which modules a list of target names means, and which ranks they allow. Names and shapes only."""

from collections.abc import Sequence

from loratune.errors import HyperParameterError, ModelError
from loratune.values import ALL_LINEAR

Shape = tuple[str, int, int]
"""(full module name, in features, out features)"""
Part = tuple[str, tuple[int, ...]]
"""(full name, shape) of a parameter of the model that each trial trains as its own, beside its adapter."""
NEW_WEIGHTS = "new_weights"
"""Attribute of a classifier with the names of the parameters that its checkpoint did not give; absent: all of its head.
"""
_ATTENTION = ("attn", "attention")
_QUERY_VALUE = (("q_proj", "v_proj"), ("query", "value"), ("q_lin", "v_lin"))


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
            f"got {r}; lower it, or leave that layer out by --target-modules."
        )


def target_groups(available: Sequence[Shape]) -> dict[str, tuple[str, ...]]:
    """The usual choices of layers by what they are called, each as target names that select exactly those.

    Attention and MLP are told apart by the modules' names. Groups that the model does not have (a fused
    projection of queries, keys and values; a mixture whose experts are not adapted) are left out.
    """
    attention = [shape for shape in available if any(word in shape[0].lower() for word in _ATTENTION)]
    last = {name.rpartition(".")[2] for name, _, _ in attention}
    pair = next((names for names in _QUERY_VALUE if last.issuperset(names)), ())
    chosen = {
        "every linear layer": list(available),
        "the MLP only": [shape for shape in available if shape not in attention],
        "the attention only": attention,
        "queries and values": [s for s in attention if s[0].rpartition(".")[2] in pair],
    }
    groups: dict[str, tuple[str, ...]] = {}
    for words, group in chosen.items():
        names = ALL_LINEAR if len(group) == len(available) else shortest_names(available, group)
        if group and names not in groups.values():
            groups[words] = names
    return groups


def shortest_names(available: Sequence[Shape], group: Sequence[Shape]) -> tuple[str, ...]:
    """The shortest endings of the group's names that select exactly the group among `available`."""
    parts = [name.split(".") for name, _, _ in group]
    for depth in range(1, max((len(each) for each in parts), default=0)):
        names = tuple(dict.fromkeys(".".join(each[-depth:]) for each in parts))
        if select_targets(available, names) == tuple(group):
            return names
    return tuple(name for name, _, _ in group)
