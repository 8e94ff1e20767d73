"""What the truncation curve says, beside the trained ranks."""

from __future__ import annotations

from loratune.values import Truncation


def truncation_sentence(found: Truncation) -> str:
    """What the curve shows, and what it does not."""
    text = (
        f"The rank-{found.r} adapter can be cut to rank {found.deployable} without training on"
        if found.deployable < found.r
        else f"No cut of the rank-{found.r} adapter was shown to be as good as whole"
    )
    entropy = sorted(layer.entropy_rank for layer in found.layers)
    if entropy:
        text += (
            f"; by the entropy of their singular values its layers use {entropy[0]:.1f} to {entropy[-1]:.1f} "
            f"ranks (median {entropy[len(entropy) // 2]:.1f})"
        )
    return (
        f"{text}. On {found.rows} validation rows; dotted line: the whole adapter. "
        "Training at a rank is measured above and decides; cuts beyond 8-fold are pessimistic."
    )
