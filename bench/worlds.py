"""Worlds whose truth is known: what a run of any setting would lose, row by row, without training anything."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import exp, log, log2

import numpy as np
import numpy.typing as npt

from loratune.search.space import usual_rate
from loratune.values import (
    DataFacts,
    HyperParameters,
    ModelFacts,
    RunLimits,
    SearchContext,
    Trial,
    TrialResult,
    TrialState,
    Wishes,
)

RANKS = (1, 2, 4, 8, 16, 32, 64, 128)
BATCH = 16
ROWS = 10_000
"""Training rows."""
TOKENS = 100
"""Of a row."""
SMALLEST_FRACTION = 0.125
LEVEL_SD = 0.3
"""Of the natural logarithm of the best learning rate over the law's: no ladder may hit it by luck."""
USELESS = 1.0
"""Nats above its rank's best of a setting that diverges."""
HEAVY_SIGMA = 1.9
"""Sd of log row loss at which 5 % of the rows carry 60 % of the loss."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class World:
    """Expected NLL: a rank curve plus a parabola in log learning rate, whose optimum moves with the rank."""

    curve: Callable[[int], float]
    """Expected NLL of a rank at its own best learning rate."""
    ranks: tuple[int, ...] = RANKS
    noise: float = 0.001
    """Sd between seeds, nats."""
    shared_noise: float = 0.0
    """Sd of what a seed does to all settings alike, nats."""
    row_noise: float = 0.02
    """Sd over rows of what a setting does to a row, and again of what a seed does, nats."""
    heavy: bool = False
    """Whether few rows carry most of the loss and of its noise."""
    slope: float = -0.5
    """Exponent of the rank in the best learning rate, alpha = 2r."""
    level: tuple[float, ...] = (1.0,)
    """Best learning rate at rank 16 over the law's; in turn where there are several."""
    curvature: float = 0.02
    """Nats added at a factor e from the best learning rate."""
    diverges_above: float = 30.0
    """Ratio to the best learning rate above which a run diverges."""
    screen: Callable[[float], float] = lambda fraction: fraction**-0.1
    """Best learning rate on a share of the rows over that on all."""
    fails: float = 0.0
    """Probability that a seed's run ends far too high, whatever its setting."""
    seeds: int = 0
    """Different seeds that can be had; 0: any number."""
    validation_rows: int = 400

    @property
    def best(self) -> float:
        """The lowest expected NLL of all ranks."""
        return min(map(self.curve, self.ranks))

    def adequate(self, r: int, margin: float) -> bool:
        """Whether the rank at its own rate is within the margin of every rank at its own."""
        return self.curve(r) <= self.best + margin

    def smallest_adequate(self, margin: float) -> int:
        return next(r for r in self.ranks if self.adequate(r, margin))


@dataclass(eq=False)
class WorldRunner:
    """Answers trials in one draw of a world."""

    world: World
    draw: int
    rows: Floats = field(init=False)
    """[validation rows] loss of a row over the mean row's."""
    level: float = field(init=False)
    """Best learning rate at rank 16 over the law's."""

    def __post_init__(self) -> None:
        generator = np.random.default_rng(self.draw)
        sigma = HEAVY_SIGMA if self.world.heavy else 0.7
        self.rows = generator.lognormal(0.0, sigma, self.world.validation_rows)
        self.rows /= self.rows.mean()
        levels = self.world.level
        self.level = levels[self.draw % len(levels)] * exp(LEVEL_SD * generator.standard_normal())

    def context(self, *, margin: float, budget: float, seed: int = 0) -> SearchContext:
        """What a strategy may know and try."""
        return SearchContext(
            data=DataFacts(
                rows=ROWS,
                tokens=TOKENS * ROWS,
                supervised_tokens=0,
                validation_weights=np.ones(self.world.validation_rows),
            ),
            model=ModelFacts(largest_rank=max(self.world.ranks)),
            limits=RunLimits(
                largest_batch=BATCH,
                smallest_fraction=SMALLEST_FRACTION,
                seeds=self.world.seeds,
            ),
            wishes=Wishes(
                ranks=self.world.ranks,
                batch_sizes=(BATCH,),
                alpha_ratios=(2.0,),
                margin=margin,
                seed=seed,
                budget=budget,
            ),
        )

    def ratio(self, context: SearchContext, setting: HyperParameters, fraction: float = 1.0) -> float:
        """The setting's learning rate over the best one at its rank."""
        law = usual_rate(context.changed(rate_factor=1.0, flat_rate=None), 16, BATCH)
        best = self.level * law * (setting.r / 16) ** self.world.slope
        return float(setting.learning_rate / (best if fraction == 1 else best * self.world.screen(fraction)))

    def nll(self, context: SearchContext, setting: HyperParameters, fraction: float = 1.0) -> float:
        """Expected over rows and seeds; on part of the rows all ranks are alike."""
        world, ratio = self.world, self.ratio(context, setting, fraction)
        if ratio > world.diverges_above:
            return world.curve(setting.r) + USELESS
        blind = (1 - fraction) * (0.5 + world.curve(world.ranks[-1]) - world.curve(setting.r))
        return world.curve(setting.r) + blind + world.curvature * log(ratio) ** 2

    def run(self, trials: Iterable[Trial], context: SearchContext) -> tuple[TrialResult, ...]:
        """The same trial ends the same."""
        return tuple(self._run(trial, context) for trial in trials)

    def _run(self, trial: Trial, context: SearchContext) -> TrialResult:
        world, cost = self.world, context.cost(trial)
        seed = trial.seed % world.seeds if world.seeds else trial.seed
        told = replace(trial, seed=seed)
        if self.ratio(context, trial.hyper_parameters, trial.fraction) > world.diverges_above:
            return TrialResult(
                asked=trial, trial=told, state=TrialState.DIVERGED, cost=cost, message="diverged"
            )
        own = np.random.default_rng([self.draw, int(told.key, 16)])
        of_setting = np.random.default_rng([self.draw, int(replace(told, seed=0).key, 16), 1])
        of_seed = np.random.default_rng([self.draw, seed, 2])
        mean = self.nll(context, trial.hyper_parameters, trial.fraction)
        mean += world.noise * own.standard_normal() + world.shared_noise * of_seed.standard_normal()
        if own.random() < world.fails:
            mean += 0.1 + own.exponential(0.2)
        count = world.validation_rows
        scatter = world.row_noise * (of_setting.standard_normal(count) + own.standard_normal(count))
        scale = self.rows if world.heavy else 1.0
        values = mean + (self.rows - 1) * world.best + scale * scatter
        nll = float(values.mean())
        full = trial.fraction == 1
        metrics: Mapping[str, float] = {"nll": nll}
        return TrialResult(
            asked=trial, trial=told, nll=nll, metrics=metrics, example_nll=values if full else None, cost=cost
        )


def power(scale: float, exponent: float, limit: float = 0.5) -> Callable[[int], float]:
    return lambda r: limit + scale * r**-exponent


def knee(at: int, height: float = 0.03) -> Callable[[int], float]:
    """Flat from rank `at` on, each halving below it costs `height`."""
    return lambda r: 0.5 + height * max(log2(at / r), 0.0)


def valley(at: int, height: float = 0.006) -> Callable[[int], float]:
    """Best at rank `at`, worse with the square of the doublings from it: large ranks over-fit."""
    return lambda r: 0.5 + height * log2(r / at) ** 2


FLAT, USUAL = power(0.0, 1.0), power(0.06, 0.65)
WORLDS: dict[str, World] = {
    "power law": World(curve=USUAL),
    "power law, gentle": World(curve=power(0.02, 0.7)),
    "power law, slow": World(curve=power(0.06, 0.35)),
    "power law, noisy": World(curve=USUAL, noise=0.004, row_noise=0.05),
    "power law, drowned": World(curve=USUAL, noise=0.02, row_noise=0.1),
    "knee at 8": World(curve=knee(8)),
    "knee beyond the largest rank": World(curve=knee(256), ranks=RANKS[:6]),
    "U-shaped": World(curve=valley(8)),
    "best rate constant in rank": World(curve=USUAL, slope=0.0),
    "best rate falls as 1/r": World(curve=USUAL, slope=-1.0),
    "law's level wrong by 3": World(curve=USUAL, level=(3.0, 1 / 3)),
    "heavy rows": World(curve=USUAL, heavy=True, row_noise=0.05),
    "64 validation rows": World(curve=USUAL, noise=0.004, row_noise=0.05, validation_rows=64),
    "seeds shared between trials": World(curve=USUAL, noise=0.001, shared_noise=0.004),
    "label task": World(
        curve=power(0.03, 0.65, 0.1), noise=0.008, row_noise=0.05, heavy=True, curvature=0.01
    ),
    "diverges at 1.3 times the best rate": World(curve=USUAL, diverges_above=1.3),
    "seeds that fail": World(curve=USUAL, fails=0.2),
    "misleading screen": World(curve=USUAL, screen=lambda fraction: 3.5, curvature=0.03),
    "all equal": World(curve=FLAT, curvature=0.0),
    "all equal, noisy": World(curve=FLAT, curvature=0.0, noise=0.004, row_noise=0.05),
    "all equal, 2 seeds": World(curve=FLAT, curvature=0.0, noise=0.004, row_noise=0.05, seeds=2),
}
