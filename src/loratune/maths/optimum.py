"""Reading optima off measured curves: the best learning rate, the rank that was needed. Knows numbers only."""

from collections.abc import Sequence
from math import exp, isfinite, log

import numpy as np

from loratune.maths.powerlaw import fit_power_law
from loratune.values import NLL_MARGIN, Optimum

_FEWEST_RANKS = 3
_SMALLEST_REFERENCE = 16
"""A rank curve that ends below says nothing about the rank that is needed."""


def best_rate(rates: Sequence[float], losses: Sequence[float]) -> tuple[float, float, bool]:
    """Minimum of measured losses over the learning rate: (rate, loss there as measured, whether inside).

    Inside, the rate is the vertex of the parabola through the best and its neighbours in log rate and log
    loss, at most half a step from the best; at an edge, or beside a diverged (infinite) neighbour, it is
    the best one tried. `rates` ascend. Raises `ValueError` where no loss is finite.
    """
    finite = [i for i, value in enumerate(losses) if isfinite(value)]
    if not finite:
        raise ValueError("A curve needs a finite loss to have a best learning rate.")
    best = min(finite, key=lambda i: losses[i])
    if not 0 < best < len(rates) - 1:
        return rates[best], losses[best], False
    around = slice(best - 1, best + 2)
    if not all(0 < value < float("inf") for value in losses[around]):
        return rates[best], losses[best], True
    x = [log(rate) for rate in rates[around]]
    a, b, _ = np.polyfit(x, [log(value) for value in losses[around]], 2)
    if a <= 0:
        return rates[best], losses[best], True
    vertex = min(max(-b / (2 * a), (x[0] + x[1]) / 2), (x[1] + x[2]) / 2)
    return exp(vertex), losses[best], True


def rank_curve(optima: Sequence[Optimum]) -> dict[int, float]:
    """NLL by ascending rank at each one's own learning rate, at the batch size at which most ranks were measured.

    Empty with fewer than three ranks, or where the largest is below 16.
    """
    by_batch: dict[int, dict[int, float]] = {}
    for each in optima:
        if isfinite(each.nll):
            ranks = by_batch.setdefault(each.batch_size, {})
            ranks[each.r] = min(each.nll, ranks.get(each.r, each.nll))
    curve = max(by_batch.values(), key=len, default={})
    enough = len(curve) >= _FEWEST_RANKS and max(curve) >= _SMALLEST_REFERENCE
    return dict(sorted(curve.items())) if enough else {}


def needed_rank(optima: Sequence[Optimum], margin: float = NLL_MARGIN) -> float | None:
    """The smallest rank (a real number) within `margin` nats of the largest measured, by the power law.

    None without a `rank_curve`.
    """
    curve = rank_curve(optima)
    if not curve:
        return None
    largest = max(curve)
    law = fit_power_law(list(curve), list(curve.values()))
    excess = law.scale * largest**-law.exponent + margin
    return min(max((law.scale / excess) ** (1 / law.exponent), 1.0), float(largest)) if law.scale else 1.0
