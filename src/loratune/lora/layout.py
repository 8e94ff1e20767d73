"""Where the matrices of an adapter lie in one flat vector. Knows shapes only, not how they are used."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch

from loratune.errors import ModelError
from loratune.values import ALL_LINEAR, HyperParameters


class Target(NamedTuple):
    """A module that can be adapted, under its full name in `model.named_modules()`."""

    name: str
    in_features: int
    out_features: int


def select_targets(
    available: Sequence[tuple[str, int, int]], target_modules: Sequence[str]
) -> tuple[Target, ...]:
    """The modules that PEFT would adapt: all, or those whose name is, or ends in, one of `target_modules`.

    Keeps the order of `available`, which is that of `model.named_modules()`. Raises `ModelError` for a
    name that matches nothing.
    """
    if tuple(target_modules) == ALL_LINEAR:
        return tuple(Target(*entry) for entry in available)

    def matches(name: str, wanted: str) -> bool:
        return name == wanted or name.endswith(f".{wanted}")

    for wanted in target_modules:
        if not any(matches(name, wanted) for name, _, _ in available):
            known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name, _, _ in available}))
            raise ModelError(
                f"target_modules must name linear layers of the model, got {wanted!r}; choose from {known}."
            )
    return tuple(Target(*e) for e in available if any(matches(e[0], wanted) for wanted in target_modules))


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterLayout:
    """Shapes and offsets of every A [r, in] and B [out, r], in the order of the modules, A before B."""

    r: int
    targets: tuple[Target, ...]

    @property
    def size(self) -> int:
        """Numbers in the flat vector."""
        return self.r * sum(target.in_features + target.out_features for target in self.targets)

    def views(self, flat: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """(A [r, in], B [out, r]) by module name, as views of a flat vector [size]."""
        found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        offset = 0
        for name, in_features, out_features in self.targets:
            middle = offset + self.r * in_features
            end = middle + self.r * out_features
            found[name] = (
                flat[offset:middle].view(self.r, in_features),
                flat[middle:end].view(out_features, self.r),
            )
            offset = end
        return found


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Adapter:
    """A LoRA adapter: what it is called for, where its numbers lie, and the numbers."""

    hyper_parameters: HyperParameters
    layout: AdapterLayout
    weights: torch.Tensor
    """[layout.size] float32 (float64 in tests)."""

    def views(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """(A, B) by module name."""
        return self.layout.views(self.weights)

    def copy(self) -> Self:
        """The same adapter with weights of its own."""
        return type(self)(
            hyper_parameters=self.hyper_parameters, layout=self.layout, weights=self.weights.detach().clone()
        )
