"""The learning-rate bracket: widened until the best is inside. Knows nothing of the other hyper-parameters."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import exp, inf, log

import numpy as np

from loratune.search.compare import distinct, loss
from loratune.search.procedure import ROUNDING, Procedure, Results
from loratune.search.space import RateScale, two_digits
from loratune.values import SearchContext, Trial, TrialResult


@dataclass(frozen=True, kw_only=True, slots=True)
class Bracket:
    """Learning rates tried, and the best."""

    best: float
    """The minimum: of a parabola in log space through the best and its neighbours, or the best one tried."""
    tried: tuple[tuple[float, float], ...]
    """(learning rate, mean NLL; infinite where it diverged), ascending."""
    closed: bool
    """Whether there is a worse one on either side of the best."""
    results: Results

    @property
    def nll(self) -> float:
        """The smallest NLL met."""
        return min((value for _, value in self.tried), default=inf)


def bracket(
    make: Callable[[float], Trial],
    *,
    scale: RateScale,
    centre: float,
    count: int,
    extensions: int,
    refine: bool,
) -> Procedure[Bracket]:
    """Tries `count` rates around the centre, then up to `extensions` more while the best is at an edge.

    With `refine` the best is interpolated between free rates; a user's rates are taken as they are.
    NLL chooses learning rates whatever the metric: it is the least noisy. All diverged counts as too high.
    """
    rates = list(scale.window(centre, count))
    results = list((yield tuple(make(rate) for rate in rates)))
    stuck: set[int] = set()
    for _ in range(extensions if count > 1 else 0):
        direction = next((side for side in _open_sides(results) if side not in stuck), 0)
        if direction:
            rate = scale.beyond(rates[0] if direction < 0 else rates[-1], direction)
        else:
            rate = None if scale.given or 0 in stuck else _below_cliff(results)
        if rate is None and direction == 0:
            break
        if rate is None:
            stuck.add(direction)
            continue
        more = yield (make(rate),)
        if not more:
            break
        seen = {pair[0] for pair in curve(results)}
        if more[0].trial.hyper_parameters.learning_rate in seen:
            stuck.add(direction)  # a table had no other cell on that side
        results.extend(more)
        rates = sorted([*rates, rate])
    found = summarise(results, centre, refine=refine and not scale.given)
    return replace(found, best=scale.window(found.best, 1)[0]) if scale.given else found


def summarise(results: Sequence[TrialResult], centre: float, *, refine: bool) -> Bracket:
    """The best of the learning rates tried so far."""
    tried = curve(results)
    finite = [index for index, (_, nll) in enumerate(tried) if nll < inf]
    if not finite:
        lowest = min((rate for rate, _ in tried), default=None)
        best = centre if lowest is None else two_digits(lowest / 3)
        return Bracket(best=best, tried=tried, closed=False, results=tuple(results))
    index = min(finite, key=lambda i: tried[i][1])
    inside = 0 < index < len(tried) - 1
    best = tried[index][0]
    if inside and refine:
        best = _vertex(tried[index - 1 : index + 2])
    return Bracket(best=best, tried=tried, closed=inside, results=tuple(results))


def closed_within(ladder: Bracket, given: Sequence[float]) -> bool:
    """Whether each side of the best has a worse one, or no further candidate, as with the user's own rates."""
    finite = [pair for pair in ladder.tried if pair[1] < inf]
    if not finite:
        return False
    best = min(finite, key=lambda pair: pair[1])[0]
    rates = [rate for rate, _ in ladder.tried]
    below = any(rate < best for rate in rates) or min(given) >= best * (1 - ROUNDING)
    above = any(rate > best for rate in rates) or max(given) <= best * (1 + ROUNDING)
    return below and above


def curve(results: Sequence[TrialResult]) -> tuple[tuple[float, float], ...]:
    """(learning rate that was run, mean NLL over its runs), ascending."""
    values: dict[float, list[float]] = defaultdict(list)
    for result in distinct(results):
        values[result.trial.hyper_parameters.learning_rate].append(result.nll if result.finished else inf)
    return tuple(sorted((rate, float(np.mean(nlls))) for rate, nlls in values.items()))


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedRate:
    """One learning rate for several brackets."""

    rate: float
    losses: tuple[float, ...]
    """What each bracket loses by it against its best one tried, in the metric's unit; infinite: diverged."""


def shared_rate(context: SearchContext, brackets: Sequence[Bracket]) -> SharedRate | None:
    """The rate with the smallest worst loss over the brackets; None where no rate was tried in all of them."""
    curves = []
    for found in brackets:
        runs: dict[float, list[float]] = defaultdict(list)
        for result in distinct(found.results):
            runs[result.trial.hyper_parameters.learning_rate].append(loss(context, result))
        curves.append({rate: float(np.mean(values)) for rate, values in runs.items()})
    common = set.intersection(*(set(found) for found in curves)) if curves else set()
    options = [
        SharedRate(rate=rate, losses=tuple(_above_best(found, rate) for found in curves))
        for rate in sorted(common)
    ]
    return min(options, key=lambda option: max(option.losses), default=None)


def _above_best(losses: dict[float, float], rate: float) -> float:
    return losses[rate] - min(losses.values()) if losses[rate] < inf else inf


def _open_sides(results: Sequence[TrialResult]) -> tuple[int, ...]:
    """Sides (-1 below, +1 above) on which the best has no worse neighbour."""
    tried = curve(results)
    if not tried:
        return ()
    index = min(range(len(tried)), key=lambda i: tried[i][1])
    if tried[index][1] == inf:
        return (-1,)
    return tuple(side for side, at_edge in ((-1, index == 0), (1, index == len(tried) - 1)) if at_edge)


def _below_cliff(results: Sequence[TrialResult]) -> float | None:
    """Half-way (in log) to a diverged neighbour above the best: the best rates lie close to the cliff."""
    tried = curve(results)
    index = min(range(len(tried)), key=lambda i: tried[i][1], default=-1)
    if not 0 <= index < len(tried) - 1 or tried[index + 1][1] < inf:
        return None
    low, high = tried[index][0], tried[index + 1][0]
    return two_digits((low * high) ** 0.5) if high > 2 * low else None


def _vertex(points: Sequence[tuple[float, float]]) -> float:
    """Minimum of the parabola through three points (log rate, log NLL), at most half a step from the best."""
    (low, _), (middle, _), (high, _) = points
    if not all(0 < nll < inf for _, nll in points):
        return middle
    a, b, _ = np.polyfit([log(rate) for rate, _ in points], [log(nll) for _, nll in points], 2)
    if a <= 0:
        return middle
    x = min(max(-b / (2 * a), (log(low) + log(middle)) / 2), (log(middle) + log(high)) / 2)
    return two_digits(exp(x))
