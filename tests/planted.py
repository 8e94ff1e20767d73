"""Tables of simulated runs with known truth, for the tests of search and replay."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path

import numpy as np

from simulated import COLUMNS

RANKS = (1, 2, 4, 8, 16, 32, 64)
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
FRACTIONS = (0.125, 0.25, 0.5, 1.0)


@dataclass(frozen=True, kw_only=True)
class Planted:
    """L(r) = limit + scale·r^-exponent, a quadratic in log learning rate whose optimum falls with the rank."""

    limit: float = 0.5
    scale: float = 0.04
    exponent: float = 0.65
    noise: float = 2e-4
    slope: float = -0.6
    rate_at_16: float = 1e-3
    curvature: float = 0.02
    """Nats added at a factor e from the best learning rate."""
    diverges_above: float = 20.0
    """Ratio to the best learning rate from which runs diverge (the cell is missing)."""
    seeds: int = 4

    def nll(self, r: int, rate: float) -> float:
        """The expected value at the end of a run."""
        best = self.rate_at_16 * (r / 16) ** self.slope
        return self.limit + self.scale * r**-self.exponent + self.curvature * log(rate / best) ** 2

    def best(self, r: int) -> float:
        """At the best learning rate of the grid."""
        return min(self.nll(r, rate) for rate in RATES)

    def smallest_adequate(self, margin: float, ranks: Sequence[int] = RANKS) -> int:
        return next(r for r in ranks if self.best(r) - self.best(max(ranks)) <= margin)

    def write(self, path: Path, seed: int = 0) -> Path:
        """A CSV with every cell that does not diverge; early readings hide the rank."""
        generator = np.random.default_rng(seed)
        with path.open("w", newline="") as file:
            out = csv.writer(file)
            out.writerow(COLUMNS)
            for r in RANKS:
                for rate in RATES:
                    if rate > self.diverges_above * self.rate_at_16 * (r / 16) ** self.slope:
                        continue
                    for run in range(self.seeds):
                        for fraction in FRACTIONS:
                            early = 0.3 * (1 - fraction)
                            rank_blind = (1 - fraction) * self.scale * r**-self.exponent
                            value = self.nll(r, rate) + early - rank_blind
                            value += self.noise * generator.standard_normal()
                            row = ("planted", r, 2 * r, rate, 16, run, 1, fraction, f"{value:.6f}", "")
                            out.writerow(row)
        return path
