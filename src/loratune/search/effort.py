"""How much the evidence strategy tries, by what the budget buys on this device. Knows counts and costs only."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from loratune.search.procedure import ROUNDING
from loratune.search.space import (
    base_batch,
    candidate_ranks,
    other_batches,
    other_betas,
    other_epochs,
    other_ratios,
    prior_setting,
    screening_fraction,
    too_small,
    unit_cost,
)
from loratune.search.waves import is_wide, wave_cost
from loratune.values import HyperParameters, SearchContext, Trial

CORE_RUNS = 10
"""Full runs that the ranks need in sequence before anything else: a bracket, the way down, a repeat."""
FEWEST_RATES, MOST_RATES = 3, 5
"""Learning rates of a rank in the first wave."""
OPENING = 0.6
"""Share of the budget, at most, in the first wave where width is nearly free; the rest follows up its results."""
FOLLOW_UP = 12
"""Trials, at least, that the budget keeps for a second request about the ranks there, before later stages."""
FIRST_LOOK, LAST_LOOK = 2, 4
"""Test seeds of a rank at the two looks of the test where runs come one after the other."""
WIDE_LOOKS = 3, 8
"""The same where width is nearly free."""
BATCHES, ALPHAS, REGULARISERS = 2, 2, 3
LATER_SHARE = 0.35
"""Share of the budget, at most, for what comes after the ranks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """Counts of what is tried."""

    wide: bool
    """Whether a request holds everything that may be useful."""
    fraction: float
    """Share of the rows; below 1 where the budget does not pay for a bracket on all rows."""
    ranks: tuple[int, ...]
    """Ranks of the first request, ascending."""
    rates: int
    """Learning rates of each in the first request."""
    looks: tuple[int, int]
    """Test seeds at the first and the last look."""
    betas: int
    """Other betas, each at two learning rates; 0 where there is none."""
    batches: int
    alphas: int
    """Alternatives to the usual alpha."""
    epochs: int
    """Other numbers of passes over the rows."""
    regularisers: int
    """Settings with dropout or weight decay."""
    reserve: float
    """What the budget keeps for the stages after the ranks, with repeats beside them where width is nearly free."""

    @property
    def seeds(self) -> int:
        """Runs of each setting that a later stage compares."""
        return self.looks[0]


def fit_effort(context: SearchContext) -> tuple[Effort, tuple[str, ...]]:
    """What the budget buys, and a sentence for each thing left out.

    Raises `BudgetError` where the budget does not pay for one trial.
    """
    unit, batch, wide = unit_cost(context), base_batch(context), is_wide(context)
    fraction = 1.0
    if context.wishes.budget + 1e-9 < FEWEST_RATES * unit:
        fraction = screening_fraction(context, batch, context.wishes.budget / unit)
    cheapest = unit_cost(context, fraction)
    if context.wishes.budget + 1e-9 < cheapest:
        raise too_small(context, cheapest)
    ranks, rates = _opening(context, wide=wide and fraction == 1)
    core = CORE_RUNS * unit
    if wide:
        core = wave_cost(context, len(ranks) * rates) + wave_cost(context, FOLLOW_UP)
    left = min(context.wishes.budget - core, LATER_SHARE * context.wishes.budget) if fraction == 1 else 0.0
    looks = _looks(context, wide)
    counts, reserve = _later(context, left, looks[0] if wide else 0)
    dropped = list(_left_out(context, counts))
    if fraction < 1:
        dropped.insert(0, "learning rates are compared on part of the rows, ranks not at all")
    dropped_sentences = tuple(
        f"For the budget of {context.wishes.budget:.3g} full runs: {sentence}." for sentence in dropped
    )
    effort = Effort(
        wide=wide,
        fraction=fraction,
        ranks=ranks,
        rates=rates,
        looks=looks,
        reserve=reserve,
        **counts,
    )
    return effort, dropped_sentences


def _later(context: SearchContext, left: float, seeds: int) -> tuple[dict[str, int], float]:
    """How many alternatives each later stage tries for at most `left`, and what they cost.

    `seeds` of each where all stages share one request: the cheapest beside the others first, and beside them repeats
    of two ranks, alone if need be. 0 where a stage follows the other: all of its alternatives or none, in the stages'
    order.
    """
    stages = _alternatives(context)
    taken = [Trial(hyper_parameters=prior_setting(context))] * 2 * seeds
    counts, cost = dict.fromkeys(stages, 0), context.wave_cost(taken)
    if not seeds:
        for name, settings in stages.items():
            price = context.wave_cost([Trial(hyper_parameters=each) for own in settings for each in own])
            if settings and cost + price <= left + ROUNDING:
                counts[name], cost = len(settings), cost + price
        return counts, cost
    if cost > left + ROUNDING:
        return counts, 0.0
    while True:
        further = {
            name: [*taken, *(Trial(hyper_parameters=each) for each in settings[counts[name]] * seeds)]
            for name, settings in stages.items()
            if counts[name] < len(settings)
        }
        cheapest = min(further, key=lambda name: context.wave_cost(further[name]), default=None)
        if cheapest is None or context.wave_cost(further[cheapest]) > left + ROUNDING:
            return counts, cost
        counts[cheapest], taken = counts[cheapest] + 1, further[cheapest]
        cost = context.wave_cost(taken)


def _alternatives(context: SearchContext) -> dict[str, list[tuple[HyperParameters, ...]]]:
    """Settings that cost what the alternatives of each later stage do: one tuple for each alternative."""
    base = prior_setting(context)
    batches = other_batches(context, base.batch_size)[:BATCHES]
    return {
        "betas": [(base, base)] * len(other_betas(context)),
        "batches": [(replace(base, batch_size=size),) for size in batches],
        "alphas": [(base,)] * min(ALPHAS, len(other_ratios(context))),
        "epochs": [(replace(base, epochs=count),) for count in other_epochs(context)],
        "regularisers": [(base,) * REGULARISERS] * context.wishes.regularise,
    }


def _left_out(context: SearchContext, counts: Mapping[str, int]) -> Iterator[str]:
    """A sentence for each later stage that is not tried."""
    sentences = {
        "betas": "beta is not searched",
        "batches": "the batch size is not searched",
        "alphas": "alpha is not searched, it stays at 2r",
        "epochs": f"the epochs are not searched, they stay at {context.wishes.epochs:g}",
        "regularisers": "dropout and weight decay are not searched",
    }
    for name, settings in _alternatives(context).items():
        if settings and not counts[name]:
            yield sentences[name]


def _looks(context: SearchContext, wide: bool) -> tuple[int, int]:
    first, last = WIDE_LOOKS if wide else (FIRST_LOOK, LAST_LOOK)
    if context.limits.seeds:
        last = max(1, min(last, context.limits.seeds - 1))
    return min(first, last), last


def _opening(context: SearchContext, *, wide: bool) -> tuple[tuple[int, ...], int]:
    """Ranks and learning rates of the first request: the richest design that leaves enough to follow it up.

    Where a wider pack saves no time, the largest rank alone.
    """
    candidates = candidate_ranks(context)
    if wide:
        most = len(context.wishes.learning_rates) or MOST_RATES
        for every, rates in ((1, most), (2, most), (1, FEWEST_RATES), (2, FEWEST_RATES), (3, FEWEST_RATES)):
            ranks = tuple(sorted(candidates[::-1][::every]))
            if wave_cost(context, len(ranks) * rates) <= OPENING * context.wishes.budget:
                return ranks, rates
    return candidates[-1:], FEWEST_RATES
