"""Where the matrices of an adapter lie in one flat vector. Knows shapes only, not how they are used."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from loratune.maths.targets import Shape, select_targets
from loratune.values import HyperParameters


class Target(NamedTuple):
    """A module that can be adapted, under its full name in `model.named_modules()`."""

    name: str
    in_features: int
    out_features: int


def find_targets(available: Sequence[Shape], target_modules: Sequence[str]) -> tuple[Target, ...]:
    """The modules that hyper-parameters target, in the order of `available`; see `select_targets`."""
    return tuple(Target(*shape) for shape in select_targets(available, target_modules))


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
