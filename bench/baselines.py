"""What a search has to beat: simple policies as strategies, beside the package's own.

None of them tests anything; each takes its best run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loratune.search.bracket import bracket
from loratune.search.grid import LEARNING_RATES, grid_design
from loratune.search.make import STRATEGIES
from loratune.search.procedure import Ledger, Procedure
from loratune.search.space import (
    RateScale,
    base_batch,
    candidate_ranks,
    hyper_parameters,
    nearest,
    trial,
    usual_rate,
)
from loratune.search.staged import Conclusion, StagedStrategy
from loratune.search.strategy import Strategy
from loratune.search.sweep import QUESTIONS, Design, SweepStrategy, best_of
from loratune.values import SearchContext, SearchPlan, Stage

FOUR_RATES = (1e-4, 2e-4, 4e-4, 8e-4)
LADDER = tuple(1e-4 * 2**step for step in range(8))
"""Of the wide grid, at every rank."""


@dataclass(frozen=True, slots=True)
class LargestBracketed(StagedStrategy):
    """The largest rank, its learning rate bracketed on all rows until the best has a worse neighbour on both sides."""

    questions = QUESTIONS

    def plan(self) -> SearchPlan:
        """The first bracket."""
        first = next(self.search(Ledger(budget=self.context.wishes.budget)))
        return SearchPlan(stages=self.planned({Stage.RANK: (len(first), float(len(first)))}, first))

    def search(self, ledger: Ledger) -> Procedure[Conclusion]:
        """Three rates, then one at a time."""
        context = self.context
        r, batch = max(candidate_ranks(context)), base_batch(context)
        found = yield from bracket(
            lambda rate: trial(hyper_parameters(context, r=r, rate=rate, batch=batch), context.wishes.seed),
            scale=RateScale.of(context),
            centre=usual_rate(context, r, batch),
            count=3,
            extensions=6,
            refine=False,
        )
        return best_of(context, found.results, ())


def four_rates(context: SearchContext) -> Design:
    """Rank 16, or the candidate next to it, at four learning rates."""
    rank = nearest(candidate_ranks(context), 16)
    return grid_design(context.changed(ranks=(rank,), learning_rates=FOUR_RATES, batch_sizes=()))


def four_wide_rates(context: SearchContext) -> Design:
    """The same at the package's own grid, half-decades from 1e-4 to 3e-3."""
    rank = nearest(candidate_ranks(context), 16)
    return grid_design(context.changed(ranks=(rank,), learning_rates=LEARNING_RATES, batch_sizes=()))


def wide_grid(context: SearchContext) -> Design:
    """Every rank at every rate of the ladder, thinned evenly to the budget."""
    return grid_design(context.changed(ranks=candidate_ranks(context), learning_rates=LADDER, batch_sizes=()))


BASELINES: dict[str, Callable[[SearchContext], Strategy]] = {
    "rank 16 with 4 rates": lambda context: SweepStrategy(context, "rank 16 with 4 rates", four_rates),
    "rank 16 with 4 wide rates": lambda context: SweepStrategy(
        context, "rank 16 with 4 wide rates", four_wide_rates
    ),
    "largest, bracketed": lambda context: LargestBracketed(context, "largest, bracketed"),
    "wide grid": lambda context: SweepStrategy(context, "wide grid", wide_grid),
}
ALL: dict[str, Callable[[SearchContext], Strategy]] = {**STRATEGIES, **BASELINES}


def names(wanted: Sequence[str]) -> tuple[str, ...]:
    """The strategies asked for, all but gp (minutes for each answer) without a wish."""
    return tuple(wanted) or tuple(name for name in ALL if name not in ("gp", "guide", "grid"))
