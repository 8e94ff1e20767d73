"""Kneedle's elbow of a curve, by the `kneed` package.

Used by the strategy `guide` and for display. A pure power law has no knee and Kneedle's answer moves with the
ends of the grid, so the default strategy never decides by it.
"""

import warnings
from collections.abc import Sequence

from kneed import KneeLocator


def elbow(ranks: Sequence[int], values: Sequence[float], *, larger_is_better: bool) -> int | None:
    """The rank at the elbow of values against rank (linear axis, sensitivity 1); None where there is none.

    `ranks` ascending. Fewer than three points have no elbow.
    """
    if len(ranks) < 3:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # kneed warns where it finds no knee; None says the same
        located = KneeLocator(
            list(ranks),
            list(values),
            S=1.0,
            curve="concave" if larger_is_better else "convex",
            direction="increasing" if larger_is_better else "decreasing",
        )
    return None if located.knee is None else int(located.knee)
