"""Signs of trouble in a trained adapter itself, by the strengths of its matrices; each rule as in `diagnosis`.

Knows numbers only, not how they were measured.
"""

import numpy as np

from loratune.analysis.signs import RATE_STEP, Floats
from loratune.values import HyperParameters
from loratune.values.analysis import Diagnosis, Sign

NEAR_START = 0.2
"""Strength of (alpha / r) B over that of A, in the median of the layers. On SmolLM2 good runs have 1.4 to 1.9, runs at
a hundredth of their best learning rate .05 to .11 (docs/log.md)."""
MANY_LAYERS = 0.5


def near_start(values: HyperParameters, a: Floats, b: Floats) -> Diagnosis | None:
    """B has hardly grown from its zeros beside A, which starts at its full size: the adapter has hardly learnt.

    After good training B is about as strong as A (Schulman 2025 finds it stronger).

    Args:
        a: [layers] largest singular value of each A; b: [layers] of each B, times lora_alpha / r.
    """
    ratio = float(np.median(b / a))
    if ratio >= NEAR_START:
        return None
    return Diagnosis(
        sign=Sign.NEAR_START,
        finding=(
            f"The adapter has hardly moved from its initial weights: B has grown to {ratio:.1%} of A's "
            "strength (alpha / r counted in) in the middle layer."
        ),
        remedy=f"Raise the learning rate to {RATE_STEP * values.learning_rate:.2g}, or train for more epochs.",
        value=ratio,
        unit="of A's strength",
        limit=NEAR_START,
    )


def outgrown(values: HyperParameters, update: Floats, layer: Floats) -> Diagnosis | None:
    """Updates stronger than the layers' own leading directions: what the base model knew may be lost.

    A new direction whose singular value exceeds a layer's tenth largest becomes one of its ten strongest: an
    intruder (Shuttleworth et al., 2410.21228), which goes with forgetting outside the task.

    Args:
        update: [layers] largest singular value of each update; layer: [layers] the tenth largest of each layer.
    """
    share = float(np.mean(update > layer))
    if share <= MANY_LAYERS:
        return None
    ratio = float(np.median(update / layer))
    lower = f"lower alpha from {values.alpha_ratio:g}r to {values.alpha_ratio / 2:g}r"
    return Diagnosis(
        sign=Sign.OUTGROWN,
        finding=(
            f"In {share:.0%} of the layers the update is stronger than the layer's own leading directions "
            f"(x {ratio:.1f} in the middle one): what the base model knows beyond this task may be forgotten."
        ),
        remedy=(
            f"If that matters, {lower}, or take a higher rank; check the tuned model on text outside the task first."
        ),
        value=share,
        unit="share of the layers",
        limit=MANY_LAYERS,
    )
