"""How much the evidence strategy tries, by what the budget buys on this device. Knows counts and costs only."""

from dataclasses import dataclass

from loratune.search.space import (
    base_batch,
    candidate_ranks,
    other_batches,
    other_betas,
    other_epochs,
    other_ratios,
    screening_fraction,
    too_small,
    unit_cost,
)
from loratune.search.waves import is_wide, wave_cost
from loratune.values import SearchContext

CORE_RUNS = 10
"""Full runs that the ranks need in sequence before anything else: a bracket, the way down, a repeat."""
FEWEST_RATES, MOST_RATES = 3, 5
"""Learning rates of a rank in the first wave."""
OPENING = 0.6
"""Share of the budget, at most, in the first wave where width is nearly free; the rest follows up its results."""
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
    """What the budget keeps for the stages after the ranks."""

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
    core = OPENING * context.wishes.budget if wide else CORE_RUNS * unit
    left = min(context.wishes.budget - core, LATER_SHARE * context.wishes.budget) if fraction == 1 else 0.0
    counts, reserve, dropped = {}, 0.0, []
    for name, wanted, price, sentence in (
        ("betas", len(other_betas(context)), 2.0, "beta is not searched"),
        ("batches", min(BATCHES, len(other_batches(context, batch))), 1.0, "the batch size is not searched"),
        ("alphas", min(ALPHAS, len(other_ratios(context))), 1.0, "alpha is not searched, it stays at 2r"),
        ("epochs", len(other_epochs(context)), _longest(context), _epochs_kept(context)),
        (
            "regularisers",
            REGULARISERS * context.wishes.regularise,
            1.0,
            "dropout and weight decay are not searched",
        ),
    ):
        cost = price * wave_cost(context, wanted) if wanted else 0.0
        counts[name] = wanted if reserve + cost <= left + 1e-9 else 0
        if counts[name]:
            reserve += cost
        elif wanted:
            dropped.append(sentence)
    if fraction < 1:
        dropped.insert(0, "learning rates are compared on part of the rows, ranks not at all")
    looks = _looks(context, wide)
    dropped_sentences = tuple(
        f"For the budget of {context.wishes.budget:.3g} full runs: {sentence}." for sentence in dropped
    )
    effort = Effort(
        wide=wide, fraction=fraction, ranks=ranks, rates=rates, looks=looks, reserve=reserve, **counts
    )
    return effort, dropped_sentences


def _longest(context: SearchContext) -> float:
    """Highest cost of the longest alternative number of passes, relative to the usual one."""
    return max((count / context.wishes.epochs for count in other_epochs(context)), default=1.0)


def _epochs_kept(context: SearchContext) -> str:
    return f"the epochs are not searched, they stay at {context.wishes.epochs:g}"


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
