"""Optuna's samplers as strategies: trials are asked in batches and answered from the history.

A batch depends only on the results before it: an in-memory study is rebuilt each time and a sampler with the batch's
own seed is asked, so the search stays a function of its history. It makes no test, and its evidence says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf
from typing import TYPE_CHECKING

from loratune.search.claims import refusals
from loratune.search.compare import loss
from loratune.search.grid import affordable_trials
from loratune.search.procedure import Ledger, Procedure
from loratune.search.random import HIGHEST_RATE, LOWEST_RATE, MOST_TRIALS
from loratune.search.space import (
    ALPHA_RATIO,
    alpha_of,
    base_batch,
    candidate_ranks,
    fitting_batches,
    hyper_parameters,
    other_ratios,
    search_seed,
    trial,
    two_digits,
)
from loratune.search.staged import Conclusion, StagedStrategy
from loratune.search.sweep import QUESTIONS, best_of
from loratune.values import HyperParameters, SearchContext, SearchPlan, Stage, Trial, TrialResult

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

LARGEST_BATCH = 8
"""Trials asked for at once, at most: none sees another's result."""
BATCHES = 4
"""Fewest batches, where trials suffice for them."""
RETRIES = 10
"""Proposals in a batch of settings that were run already."""
SEED_STEP = 7919
"""Distance between the sampler seeds of two batches, for each trial asked for."""


def tpe(seed: int, startup: int) -> BaseSampler:
    """Tree-structured Parzen estimator; trials of the same batch repel one another."""
    from optuna.samplers import TPESampler

    return TPESampler(seed=seed, n_startup_trials=startup, constant_liar=True, multivariate=True)


def gp(seed: int, startup: int) -> BaseSampler:
    """Gaussian process with expected improvement."""
    from optuna.samplers import GPSampler

    return GPSampler(seed=seed, n_startup_trials=startup, deterministic_objective=False)


@dataclass(frozen=True, slots=True)
class SamplerStrategy(StagedStrategy):
    """Rank, learning rate, batch size and alpha by a sampler, on all rows; the best finished trial wins."""

    questions = QUESTIONS

    sampler: Callable[[int, int], BaseSampler]
    """Makes the sampler from a seed and the number of trials to draw at random first."""

    @property
    def _count(self) -> int:
        return min(affordable_trials(self.context, self._batch), MOST_TRIALS)

    @property
    def _batch(self) -> int:
        """The largest number at once that leaves at least four batches."""
        sizes = range(LARGEST_BATCH, 1, -1)
        counts = ((size, affordable_trials(self.context, size)) for size in sizes)
        return next((size for size, count in counts if count >= BATCHES * size), 1)

    def plan(self) -> SearchPlan:
        """All trials in one stage; the first batch is known. Raises `BudgetError` where none is paid for."""
        first = next(self.search(Ledger(budget=self.context.wishes.budget)))
        cost = sum(self.context.cost(trial) for trial in first) / len(first) * self._count
        return SearchPlan(stages=self.planned({Stage.RANK: (self._count, cost)}, first))

    def search(self, ledger: Ledger) -> Procedure[Conclusion]:
        """Batch after batch."""
        context, results, asked = self.context, list[TrialResult](), list[Trial]()
        while len(asked) < self._count:
            observed = zip((result.asked for result in results), _values(context, results), strict=True)
            count = min(self._batch, self._count - len(asked))
            startup = max(self._count // BATCHES, 2)
            wanted = _propose(context, self.sampler, startup, count, tuple(observed), tuple(asked))
            if not wanted:
                break
            asked += wanted
            results += yield wanted
        return best_of(context, results, refusals(ledger, Stage.RANK))


@lru_cache(maxsize=256)  # a search is replayed from its start for every batch
def _propose(
    context: SearchContext,
    make_sampler: Callable[[int, int], BaseSampler],
    startup: int,
    count: int,
    observed: tuple[tuple[Trial, float], ...],
    asked: tuple[Trial, ...],
) -> tuple[Trial, ...]:
    """The next `count` trials after those `asked`; fewer where no new setting was proposed."""
    import optuna

    space = _Space.of(context)
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            sampler=make_sampler(context.wishes.seed + SEED_STEP * len(asked), startup)
        )
        optuna.logging.set_verbosity(level)
        for seen, value in observed:
            place = space.coordinates(seen.hyper_parameters)
            study.add_trial(
                optuna.trial.create_trial(params=place, distributions=space.distributions, value=value)
            )
        known = {each.key for each in asked}
        found: dict[str, Trial] = {}
        for _ in range(RETRIES + count):
            proposed = study.ask(space.distributions)
            each = trial(space.setting(proposed.params), search_seed(context))
            if each.key in known or each.key in found:
                study.tell(proposed, state=optuna.trial.TrialState.FAIL)
                continue
            found[each.key] = each
            if len(found) == count:
                break
    return tuple(found.values())


def _values(context: SearchContext, results: list[TrialResult]) -> list[float]:
    """Losses; a diverged run counts as worse than the worst by the range of the others."""
    losses = [loss(context, result) for result in results]
    finite = [value for value in losses if value < inf]
    bad = 2 * max(finite) - min(finite) if finite else 1.0
    return [value if value < inf else bad for value in losses]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Space:
    """Settings as coordinates: places in lists, the natural logarithm of a free learning rate."""

    context: SearchContext
    ranks: tuple[int, ...]
    rates: tuple[float, ...]
    batches: tuple[int, ...]
    ratios: tuple[float, ...]

    @classmethod
    def of(cls, context: SearchContext) -> _Space:
        return cls(
            context=context,
            ranks=candidate_ranks(context),
            rates=tuple(sorted(set(context.wishes.learning_rates))),
            batches=fitting_batches(context) or (base_batch(context),),
            ratios=tuple(sorted({ALPHA_RATIO, *other_ratios(context)})),
        )

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        from optuna.distributions import FloatDistribution, IntDistribution

        found: dict[str, BaseDistribution] = {"rank": IntDistribution(0, len(self.ranks) - 1)}
        if self.rates:
            found["rate"] = IntDistribution(0, len(self.rates) - 1)
        else:
            found["rate"] = FloatDistribution(LOWEST_RATE, HIGHEST_RATE, log=True)
        for name, values in (("batch", self.batches), ("ratio", self.ratios)):
            if len(values) > 1:
                found[name] = IntDistribution(0, len(values) - 1)
        return found

    def setting(self, place: Mapping[str, float]) -> HyperParameters:
        r = self.ranks[int(place["rank"])]
        rate = self.rates[int(place["rate"])] if self.rates else two_digits(place["rate"])
        batch = self.batches[int(place.get("batch", 0))]
        found = hyper_parameters(self.context, r=r, rate=rate, batch=batch)
        ratio = self.ratios[int(place.get("ratio", 0))]
        return replace(found, lora_alpha=alpha_of(self.context, r, ratio))

    def coordinates(self, setting: HyperParameters) -> dict[str, float]:
        """The inverse of `setting`."""
        rate = setting.learning_rate
        found: dict[str, float] = {"rank": self.ranks.index(setting.r)}
        found["rate"] = self.rates.index(rate) if self.rates else min(max(rate, LOWEST_RATE), HIGHEST_RATE)
        if len(self.batches) > 1:
            found["batch"] = self.batches.index(setting.batch_size)
        if len(self.ratios) > 1:
            ratio = setting.lora_alpha / setting.r
            found["ratio"] = min(range(len(self.ratios)), key=lambda i: abs(self.ratios[i] - ratio))
        return found
