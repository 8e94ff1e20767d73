"""How long trials that train beside each other take on this device. Knows numbers, not devices."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Self

Load = tuple[int, float]
"""A trial as (optimiser steps, tokens of each)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """From measured steps to the seconds of a wave: of trials that are asked for together."""

    steps: tuple[tuple[float, float], ...]
    """(tokens of a step, its seconds), at least one, tokens ascending; a step of no token may be the first."""
    forward: float
    """Evaluated tokens per second."""
    slots: int
    """Trials that train beside each other, at most."""

    def step(self, tokens: float) -> float:
        """Seconds of a step of so many tokens in flight.

        Straight between the points and from the origin to a first point that is not of no token; beyond the last
        one in proportion to the tokens, as a larger step is cut into equal ones.
        """
        points = self.steps
        (last, slowest) = points[-1]
        if tokens >= last:
            return slowest * tokens / last if last else slowest
        after = bisect_right(points, tokens, key=lambda point: point[0])
        low, start = points[after - 1] if after else (0.0, 0.0)
        high, end = points[after]
        return start + (end - start) * (tokens - low) / (high - low)

    def wave(self, loads: Iterable[Load], evaluated: float = 0.0) -> float:
        """Seconds until all of these trials have ended; `evaluated` are the tokens of their evaluations, in all.

        The longest begin, `slots` beside each other; the next ones follow when these have ended.
        """
        order = sorted(Counter(loads).items(), reverse=True)
        seconds, pack, free = 0.0, list[tuple[Load, int]](), self.slots
        for load, count in order:
            while count:
                taken = min(count, free)
                pack.append((load, taken))
                count, free = count - taken, free - taken
                if not free:
                    seconds, pack, free = seconds + self._pack(pack), [], self.slots
        seconds += self._pack(pack) if pack else 0.0
        return seconds + evaluated / self.forward

    def _pack(self, pack: Sequence[tuple[Load, int]]) -> float:
        """Of ((steps, tokens), trials), steps descending: stretch by stretch, to the next end of a trial."""
        seconds, tokens = 0.0, 0.0
        ends = [load[0] for load, _ in pack[1:]] + [0]
        for ((steps, each), count), end in zip(pack, ends, strict=True):
            tokens += count * each
            seconds += (steps - end) * self.step(tokens) if steps > end else 0.0
        return seconds

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "steps": [list(point) for point in self.steps],
            "forward": self.forward,
            "slots": self.slots,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of `to_dict`."""
        steps = tuple((float(tokens), float(seconds)) for tokens, seconds in values["steps"])
        return cls(steps=steps, forward=float(values["forward"]), slots=int(values["slots"]))


def optimiser_steps(rows: int, batch_size: int, epochs: float, fraction: float = 1.0) -> int:
    """Of a run on a share of the rows, as transformers' Trainer counts them: a part of an epoch is rounded up."""
    used = ceil(round(fraction * rows, 9))
    return max(1, ceil(round(epochs * ceil(used / batch_size), 9)))
