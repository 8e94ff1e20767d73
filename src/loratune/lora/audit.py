"""How strong the parts of a trained adapter are beside each other and beside the layers that they change.

Knows matrices only, not what their ratios mean.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from loratune.lora.layout import Adapter
from loratune.lora.truncate import decompose

DIRECTIONS = 10
"""The strongest directions of a layer, among which an intruder would stand (Shuttleworth et al., 2410.21228)."""
_DIRECTIONS_SHARE = 0.02
"""Of all directions of a small layer, which are the strongest ones."""
_EXACT = 512
"""Smaller side up to which a layer's singular values are computed and not sketched."""
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Strengths:
    """Largest singular values, [adapted layers] each."""

    a: Floats
    b: Floats
    """Times lora_alpha / r: alpha and B can be traded for each other without changing what is learnt."""
    update: Floats
    """Of the whole update, lora_alpha / r · B · A."""
    layer: Floats
    """The tenth largest of the layer's own weights; of a layer below 500 features one nearer to the largest."""


def strengths(adapter: Adapter, model: nn.Module) -> Strengths:
    """Of every layer of `adapter`, which was trained on `model`."""
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
