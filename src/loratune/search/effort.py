"""How much the evidence strategy tries, and what a budget makes it leave out. Knows counts and costs only."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from loratune.search.space import (
    base_batch,
    candidate_ranks,
    other_batches,
    other_ratios,
    screening_fraction,
    too_small,
    unit_cost,
)
from loratune.values import SearchContext

SPARE_RATES = 2
"""Screening trials kept for brackets whose best turns out to be at an edge."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """Counts of everything that is tried."""

    fraction: float
    """Share of the rows on which learning rates are screened; 1: they are screened on all rows."""
    anchor_rates: int
    """Learning rates at the first rank; they correct the law's level for all ranks."""
    screened_rates: int
    """Learning rates screened at each further rank."""
    full_rates: int
    """Learning rates compared on all rows at each rank; 0: the screened one, or the law's, is taken."""
    tuned_rates: int
    """Learning rates compared on all rows at the chosen rank, where they were only screened."""
    ranks: int
    seeds: int
    """Runs of each setting that is compared, with other seeds than the one that chose the learning rate."""
    batches: int
    rates_per_batch: int
    alphas: int
    """Alternatives to the usual alpha."""
    regularisers: int
    """Settings with dropout or weight decay."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageCosts:
    """Trials and full-run equivalents of each stage."""

    trials: tuple[int, int, int, int]
    """Rank and learning rate, batch, alpha, regularisation."""
    costs: tuple[float, float, float, float]

    @property
    def total(self) -> float:
        return sum(self.costs)

    @property
    def later(self) -> float:
        """What the stages after the first need."""
        return sum(self.costs[1:])


def full_effort(context: SearchContext) -> Effort:
    """What would be tried if the budget were no limit."""
    batch = base_batch(context)
    fraction = screening_fraction(context, batch)
    return Effort(
        fraction=fraction,
        anchor_rates=5 if fraction < 1 else 0,
        screened_rates=0,
        full_rates=len(context.learning_rates) or 3,
        tuned_rates=0,
        ranks=len(candidate_ranks(context)) if context.ranks else min(5, len(candidate_ranks(context))),
        seeds=3 if context.seeds == 0 else max(1, min(3, context.seeds - 1)),
        batches=len(other_batches(context, batch)),
        rates_per_batch=2,
        alphas=len(other_ratios(context)),
        regularisers=3 if context.regularise else 0,
    )


def price(context: SearchContext, effort: Effort) -> StageCosts:
    """Planned trials and their cost."""
    full, part = unit_cost(context), unit_cost(context, effort.fraction)
    screening = effort.anchor_rates + effort.screened_rates * (effort.ranks - 1)
    if effort.fraction < 1 and screening > 1:
        screening += SPARE_RATES
    testing = effort.ranks * effort.seeds
    if context.seeds == 1:  # the runs that chose are the only ones there are
        free = effort.ranks if effort.full_rates else int(effort.fraction == 1)
        testing = max(testing - free, 0)
    tuning = max(effort.tuned_rates - 1, 0)  # the rate that was measured is one of them
    runs = effort.ranks * effort.full_rates + testing + tuning
    batches = effort.batches * effort.rates_per_batch
    return StageCosts(
        trials=(screening + runs, batches, effort.alphas, effort.regularisers),
        costs=(
            screening * part + runs * full,
            batches * full,
            effort.alphas * full,
            effort.regularisers * full,
        ),
    )


def _screen_only(effort: Effort) -> Effort:
    screened = 3 if effort.fraction < 1 else 0
    return replace(
        effort,
        full_rates=0,
        screened_rates=screened,
        anchor_rates=5 if screened else 3,
        tuned_rates=screened,
    )


Cut = Callable[[Effort], Effort]
REDUCTIONS: tuple[tuple[str, str, Cut], ...] = (
    (
        "batch rates",
        "one learning rate for each batch size, not two",
        lambda e: replace(e, rates_per_batch=1),
    ),
    ("batches", "at most two other batch sizes", lambda e: replace(e, batches=min(e.batches, 2))),
    ("alphas", "at most two other alphas", lambda e: replace(e, alphas=min(e.alphas, 2))),
    ("seeds", "two seeds for each comparison instead of three", lambda e: replace(e, seeds=min(e.seeds, 2))),
    ("ranks", "four ranks", lambda e: replace(e, ranks=min(e.ranks, 4))),
    ("alphas", "alpha is not searched, it stays at 2r", lambda e: replace(e, alphas=0)),
    ("seeds", "one seed for each rank, repeated only where it matters", lambda e: replace(e, seeds=1)),
    ("rates", "learning rates are compared on part of the rows, or at one rank only", _screen_only),
    ("regularisers", "dropout and weight decay are not searched", lambda e: replace(e, regularisers=0)),
    ("batches", "at most one other batch size", lambda e: replace(e, batches=min(e.batches, 1))),
    ("batches", "the batch size is not searched", lambda e: replace(e, batches=0)),
    (
        "tuned",
        "learning rates are not compared on all rows at the chosen rank",
        lambda e: replace(e, tuned_rates=0),
    ),
    ("ranks", "three ranks", lambda e: replace(e, ranks=min(e.ranks, 3))),
    (
        "rates",
        "learning rates are screened at one rank, the law carries them to the other",
        lambda e: replace(e, screened_rates=0),
    ),
    ("screened", "three learning rates are screened instead of five", lambda e: replace(e, anchor_rates=3)),
    ("ranks", "two ranks", lambda e: replace(e, ranks=min(e.ranks, 2))),
    ("ranks", "one rank, the prior's: ranks are not compared", lambda e: replace(e, ranks=1)),
    ("seeds", "nothing is trained on all rows before the final run", lambda e: replace(e, seeds=0)),
    ("screened", "one learning rate, the law's", lambda e: replace(e, anchor_rates=1)),
)
"""(topic, sentence, change): what is given up, in this order, until the plan fits the budget."""


def fit_effort(context: SearchContext) -> tuple[Effort, tuple[str, ...]]:
    """The richest effort that the budget allows, and one sentence for each topic that was reduced.

    Raises `BudgetError` where the budget does not pay for one trial.
    """
    effort = full_effort(context)
    dropped: dict[str, str] = {}
    for topic, sentence, cut in REDUCTIONS:
        if price(context, effort).total <= context.budget:
            break
        smaller = cut(effort)
        if price(context, smaller).total < price(context, effort).total:
            effort = smaller
            dropped[topic] = f"For the budget of {context.budget:.3g} full runs: {sentence}."
    if effort.batches == 0:
        dropped.pop("batch rates", None)
    cost = price(context, effort).total
    if cost > context.budget:
        raise too_small(context, cost)
    return effort, tuple(dropped.values())
