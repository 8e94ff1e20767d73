"""Full factorial of the candidates, thinned evenly to the budget. A baseline; knows no results."""

from itertools import product

from loratune.search.procedure import ROUNDING
from loratune.search.space import (
    base_batch,
    fitting_batches,
    hyper_parameters,
    search_seed,
    too_small,
    trial,
    unit_cost,
)
from loratune.search.sweep import Design
from loratune.search.waves import wave_cost
from loratune.values import SearchContext

RANKS = (16,)
LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3)
MOST = 2**16
"""Trials of a sweep, for a budget without end."""


def grid_design(context: SearchContext) -> Design:
    """Ranks x learning rates x batch sizes (default: four learning rates at rank 16) on all rows, alpha 2r.

    Raises `BudgetError` where the budget does not pay for one trial.
    """
    ranks = context.wishes.ranks or tuple(min(r, context.model.largest_rank) for r in RANKS)
    sizes = fitting_batches(context) or (base_batch(context),)
    cells = list(product(ranks, context.wishes.learning_rates or LEARNING_RATES, sizes))
    affordable = affordable_trials(context)
    dropped: tuple[str, ...] = ()
    if affordable < len(cells):
        dropped = (
            f"For the budget of {context.wishes.budget:.3g} full runs: {affordable} of {len(cells)} cells, "
            "evenly spaced.",
        )
        cells = [cells[int((i + 0.5) * len(cells) / affordable)] for i in range(affordable)]
    settings = [hyper_parameters(context, r=r, rate=rate, batch=batch) for r, rate, batch in cells]
    return Design(trials=tuple(trial(s, search_seed(context)) for s in settings), dropped=dropped)


def affordable_trials(context: SearchContext, together: int | None = None) -> int:
    """How many trials on all rows the budget pays for, at least one. Raises `BudgetError` for none.

    `together`: how many are asked for at once; None: all.
    """
    cost = unit_cost(context)
    if context.wishes.budget + ROUNDING < cost:
        raise too_small(context, cost)
    if together is not None and context.costs.pace is not None:
        waves = int(context.wishes.budget / wave_cost(context, together) + ROUNDING)
        rest = affordable_trials(context) if waves == 0 else 0
        return waves * together + rest
    low, high = 1, 2
    while wave_cost(context, high) <= context.wishes.budget + ROUNDING and high < MOST:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (
            (middle, high)
            if wave_cost(context, middle) <= context.wishes.budget + ROUNDING
            else (low, middle)
        )
    return low
