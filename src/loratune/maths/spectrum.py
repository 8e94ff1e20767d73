"""What the singular values of adapters say: effective ranks, and ranks under one threshold for all layers.

Knows numbers only, not where they come from.
"""

from collections.abc import Sequence
from math import inf

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

ENERGY = 0.9


def stable_rank(singular: Floats) -> float:
    """‖σ‖² / σ₁², in [1, rank]; 0 for a zero matrix. `singular` [R] in descending order, here and below."""
    return float((singular**2).sum() / singular[0] ** 2) if singular[0] > 0 else 0.0


def entropy_rank(singular: Floats) -> float:
    """exp of the entropy of σ / Σσ, in [1, rank] (Roy and Vetterli 2007); 0 for a zero matrix."""
    present = singular[singular > 0]
    shares = present / present.sum()
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(present) else 0.0


def energy_rank(singular: Floats, share: float = ENERGY) -> int:
    """The smallest k whose first k values hold `share` of Σσ²; 0 for a zero matrix."""
    energy = np.cumsum(singular**2)
    return int(np.searchsorted(energy, share * energy[-1] * (1 - 1e-12))) + 1 if energy[-1] > 0 else 0


def threshold_ranks(
    spectra: Sequence[Floats], costs: Sequence[int], budget: float, *, fewest: int = 0
) -> tuple[int, ...]:
    """Of each layer the number of singular values above one threshold, the lowest that `budget` pays for.

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
