"""Strategies by name."""

from collections.abc import Callable

from loratune.errors import InputError
from loratune.search.carried import CarriedStrategy
from loratune.search.evidence import EvidenceStrategy
from loratune.search.grid import grid_design
from loratune.search.guide import GuideStrategy
from loratune.search.random import random_design
from loratune.search.sampler import SamplerStrategy, gp, tpe
from loratune.search.strategy import Strategy
from loratune.search.sweep import SweepStrategy
from loratune.values import SearchContext

STRATEGIES: dict[str, Callable[[SearchContext], Strategy]] = {
    "evidence": EvidenceStrategy,
    "guide": GuideStrategy,
    "grid": lambda context: SweepStrategy(context, "grid", grid_design),
    "random": lambda context: SweepStrategy(context, "random", random_design),
    "tpe": lambda context: SamplerStrategy(context, "tpe", tpe),
    "gp": lambda context: SamplerStrategy(context, "gp", gp),
}


def make_strategy(name: str, context: SearchContext) -> Strategy:
    """The strategy of that name. Raises `InputError` for a name that does not exist."""
    if name not in STRATEGIES:
        raise InputError(
            f"--strategy must be one of {', '.join(STRATEGIES)}, got {name!r}; for example --strategy evidence."
        )
    if context.prior.carried is not None:  # by that strategy, on another model
        return CarriedStrategy(context, "carried")
    return STRATEGIES[name](context)
