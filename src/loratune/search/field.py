"""All runs that compare ranks, by rank and learning rate: a joint model of them, and which failed. Decides nothing."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from math import exp, inf, log, log1p

import numpy as np
import numpy.typing as npt

from loratune.maths.surface import Place, Runs, Surface
from loratune.metrics import find
from loratune.search.bracket import Bracket, closed_within, summarise
from loratune.search.compare import FULL, finished, loss, mean_loss
from loratune.search.procedure import Results
from loratune.search.space import usual_rate
from loratune.values import HyperParameters, SearchContext, TrialResult

STANDS_OUT = 0.15
"""A run this share of the loss (and five margins) above both neighbouring ranks is taken for a failure."""
BESIDE = 1.2
"""E-folds of the learning rate, off the law, up to which runs of neighbouring ranks are compared: a grid step."""
CLOSE = 0.05
"""Share of the loss above a rank's lowest measured one within which its neighbours can make another cell the best."""
STEADY, STEADY_SHARE = 2.0, 0.1
"""Margins, and share of the loss, above a rank's best within which a cell informs its minimum and its seed noise."""
BEYOND = 1.6
"""E-folds beyond the last learning rate tried within which a rank's minimum may lie."""
APART = 0.25
"""E-folds from every learning rate tried, at least, of one that is worth a run."""
_SLOPE_SD = 0.15
"""Prior of how the best learning rate drifts off the law, e-folds per doubling of the rank."""
_PLACE_SD = 0.35
"""E-folds between a rank's best learning rate and the law corrected so far."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A rank at a learning rate that was run."""

    r: int
    rate: float
    results: Results
    """All of them, diverged ones included."""

    @property
    def diverged(self) -> bool:
        return any(not result.finished for result in self.results)


class Field:
    """Runs on all rows at one batch size and the usual alpha."""

    def __init__(self, context: SearchContext, batch: int, results: Sequence[TrialResult]) -> None:
        self.context, self.batch = context, batch
        self.results = tuple(result for result in results if result.trial.fraction >= FULL)

    @property
    def _nats(self) -> bool:
        return find(self.context.wishes.metric).info.by_nll

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Cells by rank, then learning rate; each run once, whatever was asked for."""
        found: dict[tuple[int, float], dict[int, TrialResult]] = defaultdict(dict)
        for result in self.results:
            setting = result.trial.hyper_parameters
            found[setting.r, setting.learning_rate][result.trial.seed] = result
        return tuple(
            Cell(r=r, rate=rate, results=tuple(own[seed] for seed in sorted(own)))
            for (r, rate), own in sorted(found.items())
        )

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        """Ranks with a finished run, ascending."""
        return tuple(dict.fromkeys(cell.r for cell in self.cells if not cell.diverged))

    @cached_property
    def ladders(self) -> dict[int, Bracket]:
        """The learning rates tried at each rank."""
        found = {}
        for r in dict.fromkeys(cell.r for cell in self.cells):
            own = [result for cell in self.cells if cell.r == r for result in cell.results]
            ladder = summarise(own, usual_rate(self.context, r, self.batch), refine=True)
            given = self.context.wishes.learning_rates
            found[r] = replace(ladder, closed=closed_within(ladder, given)) if given else ladder
        return found

    # what the runs say together

    @cached_property
    def _known(self) -> tuple[Cell, ...]:
        """Cells that may be recommended: all their runs finished."""
        return tuple(cell for cell in self.cells if not cell.diverged and self._values(cell))

    def _values(self, cell: Cell) -> tuple[float, ...]:
        """y of each finished run: the logarithm of the loss, or hundredths of points."""
        losses = [loss(self.context, result) for result in cell.results]
        return tuple(
            (log(max(value, 1e-9)) if self._nats else value / 100) for value in losses if value < inf
        )

    def _place(self, cell: Cell) -> Place:
        return cell.r, log(cell.rate / usual_rate(self.context, cell.r, self.batch))

    @cached_property
    def surface(self) -> Surface:
        """Over all cells that may be recommended; their order is that of `_known`."""
        runs = tuple(Runs(self._place(cell), self._values(cell)) for cell in self._known)
        return _surface(runs, self._assumed_noise)

    @property
    def _assumed_noise(self) -> float | None:
        """Sd of y from seed to seed where the context assumes one, as nothing can be repeated."""
        sd = self.context.limits.seed_sd
        lowest = min(self._mean(cell) for cell in self._known)
        return sd / lowest if sd is not None and self._nats else None

    @cached_property
    def best(self) -> dict[int, Cell]:
        """The cell of each rank with the lowest expected loss, of those that measured close to its lowest one."""
        lows: dict[int, float] = {}
        for cell in self._known:
            lows[cell.r] = min(lows.get(cell.r, inf), self._mean(cell))
        found: dict[int, int] = {}
        means = self.surface.means if self._known else np.zeros(0)
        for index, cell in enumerate(self._known):
            near = self._mean(cell) <= lows[cell.r] + max(
                self.context.wishes.margin, CLOSE * abs(lows[cell.r])
            )
            if near and (cell.r not in found or means[index] < means[found[cell.r]]):
                found[cell.r] = index
        return {r: self._known[index] for r, index in found.items()}

    def _index(self, r: int) -> int:
        return self._known.index(self.best[r])

    def level(self, r: int) -> float:
        """Expected loss of a rank's best cell, in the metric's unit."""
        y = float(self.surface.means[self._index(r)])
        return exp(y) if self._nats else 100 * y

    def _margin(self, r: int) -> float:
        """The margin above a rank's best, in y: of a loss near 0 it may be many times that loss."""
        margin = self.context.wishes.margin
        return log1p(margin / self.level(r)) if self._nats else margin / 100

    def within(self, r: int, other: int) -> float:
        """Probability that a rank at its best loses at most the margin against another at its own."""
        if r == other:
            return 1.0
        return self.surface.below(self._index(r), self._index(other), self._margin(other))

    @cached_property
    def lowest(self) -> int:
        """The rank with the lowest expected loss."""
        return min(self.best, key=self.level)

    def edge(self, r: int) -> float | None:
        """The learning rate next above a rank's best, if it diverged."""
        above = [cell for cell in self.cells if cell.r == r and cell.rate > self.best[r].rate]
        return above[0].rate if above and above[0].diverged else None

    def shortfall(self, r: int, other: int) -> tuple[float, float]:
        """How much farther a rank's best cell lies above the rank's minimum over all learning rates than another's
        above its own: mean and sd, in the metric's unit. 0 where the user named the rates: one of them is the best."""
        if self.context.wishes.learning_rates:
            return 0.0, 0.0
        own, beside = self._around(r), self._around(other)
        mean, sd = _drop(self.surface.runs, own + beside, len(own), self._assumed_noise)
        unit = self.level(other) if self._nats else 100.0
        return mean * unit, sd * unit

    @cached_property
    def finer(self) -> dict[int, tuple[float, float]]:
        """For each rank the untried learning rate beside its best from which most is expected, and that gain in the
        metric's unit."""
        around = {r: self._around(r) for r in self.best}
        gains = _gains(self.surface.runs, tuple(around.values()), self._assumed_noise)
        found = {}
        for (r, places), own in zip(around.items(), gains, strict=True):
            tried = [self._place(cell)[1] for cell in self.cells if cell.r == r]
            new = [min(abs(u - other) for other in tried) > APART for _, u in places]
            index = int(np.where(new, own, 0.0).argmax())
            unit = self.level(r) if self._nats else 100.0
            rate = usual_rate(self.context, r, self.batch) * exp(places[index][1])
            found[r] = rate, float(own[index]) * unit if new[index] else 0.0
        return found

    def _around(self, r: int) -> tuple[Place, ...]:
        """A rank's best, and places up to the rates tried beside it; where none was, beyond the ladder's next step."""
        place = self._place(self.best[r])[1]
        tried = [self._place(cell)[1] for cell in self.cells if cell.r == r]
        low = max((u for u in tried if u < place), default=place - BEYOND)
        high = min((u for u in tried if u > place), default=place + BEYOND)
        between = (*np.linspace(low, place, 5)[:-1], *np.linspace(place, high, 5)[1:])
        return tuple((r, float(u)) for u in (place, *between))

    # learning rates of ranks not run yet

    def correction(self, r: int) -> float:
        """Best learning rate at rank r over the law's, by those measured: a level and a slope, both shrunk to 0."""
        known = [(other, ladder) for other, ladder in self.ladders.items() if ladder.nll < inf]
        if not known:
            lowest = [
                min(rate for rate, _ in ladder.tried) for ladder in self.ladders.values() if ladder.tried
            ]
            ranks = list(self.ladders)
            if not lowest:
                return 1.0
            return min(
                rate / 3 / usual_rate(self.context, at, self.batch)
                for at, rate in zip(ranks, lowest, strict=True)
            )
        at = np.log2([float(other) for other, _ in known]) - np.log2(r)
        offsets = np.array(
            [log(ladder.best / usual_rate(self.context, other, self.batch)) for other, ladder in known]
        )
        sure = np.array([1.0 if ladder.closed else 0.5 for _, ladder in known])
        noise = (_PLACE_SD / sure) ** 2 / 3
        covariance = 4.0 + _SLOPE_SD**2 * np.outer(at, at) + np.diag(noise)
        # near ranks share what the slope does not explain
        apart = np.abs(at[:, None] - at[None, :])
        covariance += _PLACE_SD**2 * np.exp(-apart / 2)
        cross = 4.0 + _PLACE_SD**2 * np.exp(-np.abs(at) / 2)
        return exp(float(cross @ np.linalg.solve(covariance, offsets)))

    # what failed

    @cached_property
    def suspects(self) -> tuple[Cell, ...]:
        """Cells that diverged though no lower rate of their rank was run, and bests that stand out above both
        neighbouring ranks: to be repeated at a third of their rate before anything is concluded.

        So is the smallest rank's best twice as far above its one neighbour: the way down would end there.
        """
        found = []
        lowest: dict[int, Cell] = {}
        for cell in self.cells:
            lowest.setdefault(cell.r, cell)
        for r, cell in lowest.items():
            if cell.diverged and r not in self.best:
                found.append(cell)
        for r in (*self.outliers, *self._jump):
            cell = self.best[r]
            if not any(other.rate < cell.rate / 2 for other in self.cells if other.r == r):
                found.append(cell)
        return tuple(found)

    @cached_property
    def outliers(self) -> frozenset[int]:
        """Ranks whose best loss stands out above both neighbouring ranks."""
        ranks = sorted(self.best)
        lows = {r: min(loss(self.context, x) for x in self._finished_of(r)) for r in ranks}
        found = set()
        for low, r, high in zip(ranks, ranks[1:], ranks[2:], strict=False):
            if self._far_above(lows[r], max(lows[low], lows[high])):
                found.add(r)
        return frozenset(found)

    @property
    def _jump(self) -> tuple[int, ...]:
        """The smallest rank, where its best loss is twice as far above the next rank's as stands out."""
        if len(self.best) < 2:
            return ()
        low, following = sorted(self.best)[:2]
        lows = [min(loss(self.context, x) for x in self._finished_of(r)) for r in (low, following)]
        return (low,) if self._far_above(lows[0], lows[1], 2.0) else ()

    def _far_above(self, value: float, beside: float, times: float = 1.0) -> bool:
        return value - beside > times * max(5 * self.context.wishes.margin, STANDS_OUT * abs(value))

    def stands_out(self, result: TrialResult) -> bool:
        """Whether a run lies far above what both neighbouring ranks reach as far off the law as it is.

        Past the edge of stability larger ranks fail too, so that a rate that is too high is no failure.
        """
        setting = result.trial.hyper_parameters
        sides = (
            max((r for r in self.ranks if r < setting.r), default=None),
            min((r for r in self.ranks if r > setting.r), default=None),
        )
        place = log(setting.learning_rate / usual_rate(self.context, setting.r, self.batch))
        beside = [self._reached(r, place) for r in sides if r is not None]
        return len(beside) == 2 and self._far_above(loss(self.context, result), max(beside))

    def _reached(self, r: int, place: float) -> float:
        """The lowest loss of a rank at its learning rate that is nearest to a place; infinite where none is near."""
        own = [cell for cell in self.cells if cell.r == r]
        nearest = min(own, key=lambda cell: abs(self._place(cell)[1] - place))
        if abs(self._place(nearest)[1] - place) > BESIDE:
            return inf
        return min(loss(self.context, result) for result in nearest.results)

    def _finished_of(self, r: int) -> Results:
        return finished(self.context, [x for cell in self.cells if cell.r == r for x in cell.results])

    @cached_property
    def promising(self) -> frozenset[tuple[int, float]]:
        """(rank, learning rate) of cells whose loss is close enough to their rank's best to steady its minimum."""
        found = set()
        for cell in self._known:
            best = self.best[cell.r]
            reach = max(2 * STEADY * self.context.wishes.margin, STEADY_SHARE * abs(self._mean(best)))
            if self._mean(cell) <= self._mean(best) + reach:
                found.add((cell.r, cell.rate))
        return frozenset(found)

    def _mean(self, cell: Cell) -> float:
        return mean_loss(self.context, finished(self.context, cell.results))

    @cached_property
    def near_best(self) -> Results:
        """Finished runs of these cells."""
        return tuple(x for cell in self.cells if (cell.r, cell.rate) in self.promising for x in cell.results)


@lru_cache(maxsize=512)  # a search is replayed from its start for every request
def _surface(runs: tuple[Runs, ...], noise: float | None) -> Surface:
    return Surface(runs, tuple(each.place for each in runs), noise)


@lru_cache(maxsize=512)
def _gains(
    runs: tuple[Runs, ...], groups: tuple[tuple[Place, ...], ...], noise: float | None
) -> tuple[npt.NDArray[np.float64], ...]:
    """What each place of a group may gain on the group's first one."""
    surface = Surface(runs, sum(groups, ()), noise)
    starts = np.cumsum([0, *map(len, groups)])
    return tuple(surface.gains(start)[start:end] for start, end in pairwise(starts))


@lru_cache(maxsize=512)
def _drop(
    runs: tuple[Runs, ...], places: tuple[Place, ...], count: int, noise: float | None
) -> tuple[float, float]:
    return Surface(runs, places, noise).drop(count)


def believed(context: SearchContext, results: Sequence[TrialResult]) -> Results:
    """What may inform tables: without runs that diverged, and without runs on all rows that stand out above both
    neighbouring ranks, all but the learning rate alike."""
    groups: dict[HyperParameters, list[TrialResult]] = defaultdict(list)
    for result in results:
        groups[_but_rank_and_rate(result)].append(result)
    fields = {alike: Field(context, alike.batch_size, own) for alike, own in groups.items()}
    return tuple(
        result
        for result in results
        if result.finished
        and not (result.trial.fraction >= FULL and fields[_but_rank_and_rate(result)].stands_out(result))
    )


def _but_rank_and_rate(result: TrialResult) -> HyperParameters:
    setting = result.trial.hyper_parameters
    return replace(setting, r=1, lora_alpha=round(setting.alpha_ratio, 9), learning_rate=1.0)
