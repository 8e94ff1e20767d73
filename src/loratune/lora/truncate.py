"""Cutting a trained adapter to lower ranks by the singular values of its products, layer by layer.

By Eckart and Young the cut is the best of its rank in the Frobenius norm of each layer's update. Exact: QR of
both factors, then the SVD of the small core between them. Knows nothing of how well a cut adapter does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from loratune.lora.layout import Adapter, AdapterLayout

_ROW_NORM = 1 / sqrt(3)
"""Of the rows of A at initialisation (uniform in ±1/√in): a cut adapter can be trained on at usual rates."""


class Factors(NamedTuple):
    """The update of one layer, scaling · B · A = left · diag(singular) · right, in float64."""

    left: torch.Tensor
    """[out, R], orthonormal columns."""
    singular: torch.Tensor
    """[R], descending."""
    right: torch.Tensor
    """[R, in], orthonormal rows."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Decomposition:
    """An adapter by the singular values of its layers."""

    adapter: Adapter
    factors: tuple[Factors, ...]
    """Of each target of the adapter's layout."""

    @property
    def spectra(self) -> tuple[npt.NDArray[np.float64], ...]:
        """[R] singular values of each layer's update, descending."""
        return tuple(each.singular.cpu().numpy() for each in self.factors)

    @property
    def costs(self) -> tuple[int, ...]:
        """Parameters of one rank of each layer."""
        return tuple(target.in_features + target.out_features for target in self.adapter.layout.targets)

    def uniform(self, rank: int) -> tuple[int, ...]:
        """`rank` in every layer that has as many."""
        return tuple(min(rank, own) for own in self.adapter.layout.ranks)

    def cut(self, ranks: Sequence[int]) -> Adapter:
        """The adapter with the first `ranks` singular values of each layer; a layer with 0 is left out.

        The scaling stays the adapter's own, hence alpha in proportion to the rank. At least one rank must be
        above 0.
        """
        whole = self.adapter.hyper_parameters
        kept = [
            (t, k, f) for t, k, f in zip(self.adapter.layout.targets, ranks, self.factors, strict=True) if k
        ]
        largest = max(k for _, k, _ in kept)
        hyper_parameters = replace(
            whole,
            r=largest,
            lora_alpha=whole.scaling * largest,
            target_modules=tuple(t.name for t, _, _ in kept)
            if len(kept) < len(ranks)
            else whole.target_modules,
            rank_pattern=tuple((t.name, k) for t, k, _ in kept if k != largest),
        )
        layout = AdapterLayout.of(hyper_parameters, [target for target, _, _ in kept])
        weights = torch.empty(
            layout.size, dtype=self.adapter.weights.dtype, device=self.adapter.weights.device
        )
        for (a, b), (_, k, (left, singular, right)) in zip(layout.views(weights).values(), kept, strict=True):
            a.copy_(right[:k] * _ROW_NORM)
            b.copy_(left[:, :k] * (singular[:k] / (_ROW_NORM * whole.scaling)))
        return Adapter(hyper_parameters=hyper_parameters, layout=layout, weights=weights)


def decompose(adapter: Adapter) -> Decomposition:
    """Singular values and vectors of every layer's update."""
    scaling = adapter.hyper_parameters.scaling
    return Decomposition(
        adapter=adapter,
        factors=tuple(_factors(a.double(), b.double(), scaling) for a, b in adapter.views().values()),
    )


def _factors(a: torch.Tensor, b: torch.Tensor, scaling: float) -> Factors:
    """Of scaling · B [out, R] · A [R, in]; R may exceed neither side."""
    left, upper = torch.linalg.qr(b)
    right, lower = torch.linalg.qr(a.T)
    u, singular, v = torch.linalg.svd(scaling * upper @ lower.T)
    return Factors(left=left @ u, singular=singular, right=v @ right.T)
