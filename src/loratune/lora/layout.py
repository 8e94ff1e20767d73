"""Where the matrices of an adapter lie in one flat vector. Knows shapes only, not how they are used.

Each module may have a rank of its own: R below is the module's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

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
    """Shapes and offsets of every A [R, in] and B [out, R], in the order of the modules, A before B."""

    targets: tuple[Target, ...]
    ranks: tuple[int, ...]
    """Of each target."""

    @classmethod
    def of(cls, hyper_parameters: HyperParameters, targets: Sequence[Target]) -> Self:
        """The layout of an adapter on `targets`."""
        ranks = hyper_parameters.ranks_of(target.name for target in targets)
        return cls(targets=tuple(targets), ranks=ranks)

    @property
    def r(self) -> int:
        """The largest rank of a module; every module's where the ranks do not differ."""
        return max(self.ranks)

    @property
    def size(self) -> int:
        """Numbers in the flat vector."""
        sides = (target.in_features + target.out_features for target in self.targets)
        return sum(rank * side for rank, side in zip(self.ranks, sides, strict=True))

    def views(self, flat: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """(A [R, in], B [out, R]) by module name, as views of a flat vector [size]."""
        found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        offset = 0
        for (name, in_features, out_features), rank in zip(self.targets, self.ranks, strict=True):
            middle = offset + rank * in_features
            end = middle + rank * out_features
            found[name] = (
                flat[offset:middle].view(rank, in_features),
                flat[middle:end].view(out_features, rank),
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
