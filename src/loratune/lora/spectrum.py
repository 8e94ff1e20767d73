"""Singular values of a trained adapter's updates: how strong its parts are, and cutting it to lower ranks.

By Eckart and Young a cut is the best of its rank in the Frobenius norm of each layer's update. Exact: QR of both
factors, then the SVD of the small core between them. Knows matrices only, not what their ratios mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, sqrt
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from loratune.lora.layout import Adapter, AdapterLayout

Floats = npt.NDArray[np.float64]

_ROW_NORM = 1 / sqrt(3)
"""Norm of the rows of A at initialisation (uniform in ±1/√in): a cut adapter can be trained on at usual rates."""


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
    """Factors of each target of the adapter's layout."""

    @property
    def spectra(self) -> tuple[npt.NDArray[np.float64], ...]:
        """[R] singular values of each layer's update, descending."""
        return tuple(each.singular.cpu().numpy() for each in self.factors)

    @property
    def costs(self) -> tuple[int, ...]:
        """Parameters of one rank of each layer."""
        return tuple(target.in_features + target.out_features for target in self.adapter.layout.targets)

    def uniform(self, rank: int) -> tuple[int, ...]:
        """`rank` in every layer, or the layer's own where that is smaller."""
        return tuple(min(rank, own) for own in self.adapter.layout.ranks)

    def cut(self, ranks: Sequence[int]) -> Adapter:
        """The adapter with the first `ranks` singular values of each layer; one with 0 is left out, the head stays.

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
            lora_alpha=whole.alpha_at(largest),
            target_modules=tuple(t.name for t, _, _ in kept)
            if len(kept) < len(ranks)
            else whole.target_modules,
            rank_pattern=tuple((t.name, k) for t, k, _ in kept if k != largest),
        )
        layout = AdapterLayout.of(
            hyper_parameters, [target for target, _, _ in kept], self.adapter.layout.head
        )
        weights = torch.empty(
            layout.size, dtype=self.adapter.weights.dtype, device=self.adapter.weights.device
        )
        for (a, b), (_, k, (left, singular, right)) in zip(layout.views(weights).values(), kept, strict=True):
            a.copy_(right[:k] * _ROW_NORM)
            b.copy_(left[:, :k] * (singular[:k] / (_ROW_NORM * whole.scaling)))
        magnitudes = self.adapter.layout.magnitude_views(self.adapter.weights)
        for name, magnitude in layout.magnitude_views(weights).items():
            magnitude.copy_(magnitudes[name])
        weights[layout.head_begins :] = self.adapter.weights[self.adapter.layout.head_begins :]
        return Adapter(hyper_parameters=hyper_parameters, layout=layout, weights=weights)


def decompose(adapter: Adapter) -> Decomposition:
    """Singular values and vectors of every layer's update."""
    scaling = adapter.hyper_parameters.scaling
    return Decomposition(
        adapter=adapter,
        factors=tuple(_factors(a.double(), b.double(), scaling) for a, b in adapter.views().values()),
    )


def threshold_ranks(
    spectra: Sequence[Floats], costs: Sequence[int], budget: float, *, fewest: int = 0
) -> tuple[int, ...]:
    """Number of singular values of each layer above one threshold, the lowest that `budget` pays for.

    Args:
        spectra: singular values of each layer, in descending order.
        costs: parameters of one rank of each layer.
        budget: parameters of all layers together.
        fewest: ranks that every layer keeps whatever its values.
    """
    keys = [np.concatenate([np.full(min(fewest, len(s)), inf), s[fewest:]]) for s in spectra]
    layers = np.repeat(np.arange(len(spectra)), [len(s) for s in spectra])
    order = np.argsort(-np.concatenate(keys), kind="stable")
    kept = layers[order][np.cumsum(np.asarray(costs)[layers[order]]) <= budget]
    return tuple(np.bincount(kept, minlength=len(spectra)).tolist())


def _factors(a: torch.Tensor, b: torch.Tensor, scaling: float) -> Factors:
    """Singular values of scaling · B [out, R] · A [R, in], with both sides; R may exceed neither side."""
    left, upper = torch.linalg.qr(b)
    right, lower = torch.linalg.qr(a.T)
    u, singular, v = torch.linalg.svd(scaling * upper @ lower.T)
    return Factors(left=left @ u, singular=singular, right=v @ right.T)


DIRECTIONS = 10
"""The strongest directions of a layer, among which an intruder would stand (Shuttleworth et al., 2410.21228)."""
_DIRECTIONS_SHARE = 0.02
"""Share of a small layer's directions that counts as the strongest."""
_EXACT = 512
"""Smaller side up to which a layer's singular values are computed and not sketched."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Strengths:
    """Largest singular values, [adapted layers] each."""

    a: Floats
    b: Floats
    """B's, times lora_alpha / r: alpha and B can be traded for each other without changing what is learnt."""
    update: Floats
    """The whole update's, lora_alpha / r · B · A."""
    layer: Floats
    """The tenth largest of the layer's own weights; of a layer below 500 features one nearer to the largest."""


def strengths(adapter: Adapter, model: nn.Module) -> Strengths:
    """Strengths of every layer of `adapter`, which was trained on `model`."""
    layers = dict(model.named_modules())
    factors = adapter.views()
    scaling = adapter.hyper_parameters.scaling
    return Strengths(
        a=np.array([_strongest(a) for a, _ in factors.values()]),
        b=scaling * np.array([_strongest(b) for _, b in factors.values()]),
        update=np.array([spectrum[0] for spectrum in decompose(adapter).spectra]),
        layer=np.array([_direction(_weight(layers[name])) for name in factors]),
    )


def _weight(layer: nn.Module) -> torch.Tensor:
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return weight


def _strongest(matrix: torch.Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix.double(), 2))


def _direction(weight: torch.Tensor) -> float:
    """The weakest of the strongest singular values; of large layers sketched with twice as many directions."""
    weight = weight.detach().float()
    smaller = min(weight.shape)
    if smaller <= _EXACT:
        singular = torch.linalg.svdvals(weight)
    else:
        devices = [weight.device] if weight.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # the sketch is random, and the same every time
            torch.manual_seed(0)
            singular = torch.svd_lowrank(weight, q=2 * DIRECTIONS, niter=4)[1]
    return float(singular[min(DIRECTIONS, max(1, int(_DIRECTIONS_SHARE * smaller))) - 1])
