"""How likely a budget is to decide, before anything is spent, from its seeds and their usual scatter."""

from collections import defaultdict
from collections.abc import Sequence
from math import sqrt

from scipy.special import nctdtr, stdtrit

from loratune.maths.noninferiority import FEWEST_DEGREES, ONE_SIDED
from loratune.metrics import find, usual_seed_sd
from loratune.search.compare import FULL, unit
from loratune.search.space import test_seeds
from loratune.values import SearchContext, TrialResult


def power(margin: float, seed_sd: float, seeds: int) -> float:
    """Probability that the one-sided 95 % bound lies within the margin if two ranks are alike.

    `seeds` are runs of each. Exact (a non-central t) with the degrees that these runs have; left out are what rows add
    (less power) and the degrees that other ranks' repeats lend (more): a rough figure.
    """
    degrees = 2 * (seeds - 1)
    if degrees < FEWEST_DEGREES:
        return 0.0
    error = seed_sd * sqrt(2 / seeds)
    return float(1 - nctdtr(degrees, margin / error, stdtrit(degrees, ONE_SIDED)))


def compared_seeds(context: SearchContext, history: Sequence[TrialResult], most: int) -> int:
    """Runs with seeds of the test that each of two ranks has in a history; 0 where no two have any."""
    tested = set(test_seeds(context, most))
    seeds: dict[int, set[int]] = defaultdict(set)
    for result in history:
        if result.trial.fraction >= FULL and result.asked.seed in tested:
            seeds[result.asked.hyper_parameters.r].add(result.asked.seed)
    counts = sorted((len(own) for own in seeds.values()), reverse=True)
    return counts[1] if len(counts) > 1 else 0


def power_words(context: SearchContext, history: Sequence[TrialResult], most: int) -> str:
    """How likely the plan's runs decide, and how the margin stands to what one seed changes."""
    if not find(context.wishes.metric).info.by_nll:
        return "how likely that decides is not known for this metric"
    sd = context.limits.seed_sd or usual_seed_sd(context.data.labels)
    seeds = compared_seeds(context, history, most)
    basis = f"one seed usually changes {sd:.2g} {unit(context)}, the margin is " + (
        "not smaller" if context.wishes.margin >= sd else "smaller"
    )
    if seeds == 0:
        return f"{basis}; no two ranks are repeated, so their comparison stays undecided"
    chance = power(context.wishes.margin, sd, seeds)
    runs = "1 test seed" if seeds == 1 else f"{seeds} test seeds"
    return f"{basis}; with {runs} of two equal ranks this decides with a probability of about {chance:.0%}"
