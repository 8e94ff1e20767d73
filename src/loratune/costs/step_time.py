"""From a few measured steps to the time of any step, and to the micro-batch that is worth its memory.

A step is forward and backward of micro-batches that hold the tokens of all live trials. Small ones take as
long as it takes to launch them, large ones as long as their tokens need. Knows numbers, not devices.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import ceil

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

Point = tuple[float, float]
"""(tokens of a step that is one micro-batch, its seconds)"""

WITHIN = 0.05
"""A micro-batch is large enough where its throughput is that close to the best."""


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of a step by its tokens: a launch, then ever steeper.

    The curve of one micro-batch is the convex, non-decreasing one nearest to the measured points. With knots
    n₂ < n₃ < … at all of them but the first and the last, s(n) = c + d₀·n + Σ dⱼ·max(0, n − nⱼ) with c, d ≥ 0 by
    least squares of the relative errors (one point: no launch, c = 0). Convex, because a device does nothing
    faster when it has more to do and launching hides behind computing; noise does not bend it the other way.
    """

    points: tuple[Point, ...]
    """Measured; at least one, tokens and seconds above 0."""
    micro_batch_tokens: float
    """A step of more tokens is cut into equal micro-batches of at most this size."""

    @cached_property
    def _curve(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Tokens and seconds at the corners of the curve, from no token to one full micro-batch."""
        tokens, seconds = np.array(sorted(self.points), float).T
        knots = np.concatenate([[0.0], tokens[1:-1]])

        def terms(at: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            hinges = np.maximum(0.0, at[:, None] - knots)
            return np.column_stack([np.full(len(at), float(len(tokens) > 1)), hinges])

        scale = np.concatenate([[1.0], np.full(len(knots), 1 / tokens[-1])])
        weights, _ = nnls(terms(tokens) * scale / seconds[:, None], np.ones(len(tokens)))
        end = float(self.micro_batch_tokens)
        corners = np.concatenate([knots[knots < end], [end]])
        return corners, terms(corners) @ (weights * scale)

    @property
    def corners(self) -> tuple[Point, ...]:
        """(tokens, seconds) between which the curve of one micro-batch is straight, from no token on."""
        return tuple(zip(*(side.tolist() for side in self._curve), strict=True))

    @property
    def launch(self) -> float:
        """Seconds of a micro-batch of no tokens."""
        return float(self._curve[1][0])

    def seconds(self, tokens: float) -> float:
        """Seconds of one step of `tokens` tokens."""
        if tokens <= 0:
            return 0.0
        count = max(1, ceil(tokens / self.micro_batch_tokens - 1e-9))
        return count * float(np.interp(tokens / count, *self._curve))

    @property
    def best_rate(self) -> float:
        """Tokens per second of the best micro-batch."""
        corners, seconds = self._curve
        return float(np.max(corners[1:] / seconds[1:]))

    @cached_property
    def intercepts(self) -> tuple[float, ...]:
        """Seconds at no tokens of the lines along the curve, and 0: where `least_rate` is best asked."""
        found = {0.0, self.launch}
        for (x0, y0), (x1, y1) in pairwise(self.corners):
            found.add(max(0.0, y0 - (y1 - y0) / (x1 - x0) * x0))
        return tuple(sorted(found))

    def least_rate(self, tokens: float, intercept: float) -> float:
        """Seconds per token below which no step of at least `tokens` tokens gets, `intercept` seconds taken off it.

        min over T ≥ tokens of (seconds(T) - intercept) / T: between two corners of the curve that is monotone. A step
        of k ≥ 2 micro-batches of x = T / k tokens each, more than half full, has (s(x) - intercept / k) / x.
        """
        corners, _ = self._curve
        end = self.micro_batch_tokens
        whole = np.array([min(tokens, end), *corners[corners > min(tokens, end)]])
        cut = np.array([end / 2, *corners[corners > end / 2]])
        rates = [(np.interp(cut, *self._curve) - intercept / 2) / cut]
        if tokens <= end:
            rates.append((np.interp(whole, *self._curve) - intercept) / whole)
        return max(0.0, float(np.min(np.concatenate(rates))))


def efficient_tokens(points: Sequence[Point], *, allowed: float, within: float = WITHIN) -> float:
    """The smallest measured micro-batch whose throughput is within a share `within` of the best one allowed.

    Args:
        allowed: tokens that memory allows; where every point is above, it is the answer.
    """
    possible = sorted(point for point in points if point[0] <= allowed)
    if not possible:
        return allowed
    best = max(tokens / seconds for tokens, seconds in possible)
    return next(tokens for tokens, seconds in possible if tokens / seconds >= (1 - within) * best)
