"""Space-filling random search: a scrambled Halton sequence over rank, learning rate and batch size."""

from loratune.search.grid import affordable_trials
from loratune.search.space import (
    base_batch,
    candidate_ranks,
    fitting_batches,
    hyper_parameters,
    search_seed,
    trial,
    two_digits,
)
from loratune.search.sweep import Design
from loratune.values import SearchContext

LOWEST_RATE = 3e-5
HIGHEST_RATE = 1e-2
MOST_TRIALS = 256


def random_design(context: SearchContext) -> Design:
    """The trials on all rows that the budget pays for (at most 256), the same for the same seed.

    Learning rate log-uniform from 3e-5 to 1e-2, or from the user's list; rank and batch size evenly from the
    candidates; alpha 2r. Raises `BudgetError` where the budget does not pay for one trial.
    """
    count = min(affordable_trials(context), MOST_TRIALS)
    ranks = candidate_ranks(context)
    sizes = fitting_batches(context) or (base_batch(context),)
    from scipy.stats import qmc  # a second of every start, which other strategies do without

    points = qmc.Halton(d=3, seed=context.wishes.seed).random(count)
    settings = []
    for rank_part, rate_part, size_part in points:
        if context.wishes.learning_rates:
            rate = context.wishes.learning_rates[int(rate_part * len(context.wishes.learning_rates))]
        else:
            rate = two_digits(LOWEST_RATE * (HIGHEST_RATE / LOWEST_RATE) ** float(rate_part))
        settings.append(
            hyper_parameters(
                context,
                r=ranks[int(rank_part * len(ranks))],
                rate=rate,
                batch=sizes[int(size_part * len(sizes))],
            )
        )
    return Design(trials=tuple(trial(s, search_seed(context)) for s in dict.fromkeys(settings)))
