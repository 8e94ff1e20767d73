"""A rank for each layer against one rank for all, at equal parameters. Adopted only if shown better.

The ranks come from outside: from the singular values of a trained adapter, which no history of results holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from loratune.search.challenge import ChallengeAnswer, Contender, challenge
from loratune.search.claims import note
from loratune.search.compare import finished, unit
from loratune.search.procedure import Ledger, Procedure
from loratune.search.space import test_seeds, trial
from loratune.values import Evidence, HyperParameters, SearchContext, Stage, TrialResult

QUESTION = "Does a rank for each layer, with as many parameters, do better than one rank for all?"
FEWEST_SEEDS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerRanksSearch:
    """Trains the patterned setting with the seeds that the uniform one was tested with."""

    context: SearchContext
    uniform: HyperParameters
    patterned: HyperParameters
    seeds: int
    earlier: tuple[TrialResult, ...]
    """All results of the search, for the noise between seeds."""

    @classmethod
    def after(
        cls,
        context: SearchContext,
        uniform: HyperParameters,
        patterned: HyperParameters,
        history: Sequence[TrialResult],
    ) -> "LayerRanksSearch":
        """The search with the seeds that the uniform setting was run with, at least two (or all there are)."""
        present = {result.asked.key for result in history}
        seeds = len(test_seeds(context, FEWEST_SEEDS))
        while len(test_seeds(context, seeds + 1)) > seeds and all(
            trial(uniform, seed).key in present for seed in test_seeds(context, seeds + 1)
        ):
            seeds += 1
        return cls(context=context, uniform=uniform, patterned=patterned, seeds=seeds, earlier=tuple(history))

    def __call__(self, ledger: Ledger) -> Procedure[ChallengeAnswer]:
        """The comparison; results that the history holds already are not asked for again."""
        order = test_seeds(self.context, self.seeds)
        known = yield tuple(trial(self.uniform, seed, stage=Stage.LAYER_RANKS) for seed in order)
        incumbent = Contender(setting=self.uniform, results=finished(self.context, known))
        return (
            yield from challenge(
                self.context,
                incumbent,
                [self.patterned],
                stage=Stage.LAYER_RANKS,
                seeds=self.seeds,
                earlier=(*self.earlier, *known),
                prefer=None,
                spare=inf,
            )
        )


def layer_rank_claims(context: SearchContext, found: ChallengeAnswer, words: str) -> tuple[Evidence, ...]:
    """Whether the pattern is better; `words` say where it comes from."""
    if not found.compared:
        return (note("A rank for each layer could not be compared: a run diverged or the clock cut it."),)
    ((_, comparison),) = found.compared
    better = comparison.better()
    taken = "it is taken" if better else "one rank for all is kept"
    return (
        Evidence(
            claim=(
                f"A rank for each layer ({words}) is better than rank {found.incumbent.setting.r} in all, "
                f"with the same number of parameters: {taken}."
            ),
            value=comparison.difference,
            unit=unit(context),
            interval=comparison.interval,
            margin=comparison.margin,
            holds=comparison.shown_better(),
        ),
    )
