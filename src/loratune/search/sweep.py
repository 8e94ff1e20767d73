"""Strategies that fix all their trials beforehand and take the best: full grid and random.

They test nothing; their evidence says so.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from loratune.search.claims import note, refusals
from loratune.search.compare import loss, unit
from loratune.search.procedure import Ledger, Procedure
from loratune.search.space import prior_setting
from loratune.search.staged import Conclusion, StagedStrategy
from loratune.values import Evidence, SearchContext, SearchPlan, Stage, Trial

QUESTIONS = {Stage.RANK: "Which of these settings has the best value?"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Design:
    """All trials of a sweep, fitted to the budget, and what was left out."""

    trials: tuple[Trial, ...]
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SweepStrategy(StagedStrategy):
    """Runs a design made in advance; of a history it takes the best finished trial, else the prior."""

    questions = QUESTIONS

    design: Callable[[SearchContext], Design]
    """Raises `BudgetError` where the budget pays for no trial."""

    def plan(self) -> SearchPlan:
        """All trials, in one stage."""
        design = self.design(self.context)
        cost = sum(self.context.cost(trial) for trial in design.trials)
        stages = self.planned({Stage.RANK: (len(design.trials), cost)}, design.trials)
        return SearchPlan(stages=stages, dropped=design.dropped)

    def search(self, ledger: Ledger) -> Procedure[Conclusion]:
        """One request for the whole design."""
        context, design = self.context, self.design(self.context)
        results = [result for result in (yield design.trials) if loss(context, result) < inf]
        if not results:
            setting = prior_setting(context)
            evidence = [note("No run has finished: this is the prior, nothing has been measured.")]
        else:
            best = min(results, key=lambda result: loss(context, result))
            setting = best.asked.hyper_parameters
            evidence = [
                Evidence(
                    claim=f"Best of {len(results)} runs by {context.metric}, one seed each, untested.",
                    value=loss(context, best),
                    unit=unit(context),
                )
            ]
        evidence += refusals(ledger, Stage.RANK)
        answer = f"rank {setting.r}, learning rate {setting.learning_rate:g}, batch size {setting.batch_size}"
        return Conclusion(
            hyper_parameters=setting,
            evidence=(*evidence, *(note(sentence) for sentence in design.dropped)),
            answers={Stage.RANK: (answer, {})},
        )
