"""Strategies that fix all their trials beforehand and take the best: full grid and random.

They make no test, and their evidence says so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

from loratune.search.claims import note, refusals
from loratune.search.compare import loss, unit
from loratune.search.procedure import Ledger, Procedure
from loratune.search.space import prior_setting
from loratune.search.staged import Conclusion, StagedStrategy
from loratune.values import Evidence, SearchContext, SearchPlan, Stage, Trial, TrialResult

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
        results = yield design.trials
        dropped = tuple(note(sentence) for sentence in design.dropped)
        return best_of(context, results, (*refusals(ledger, Stage.RANK), *dropped))


def best_of(context: SearchContext, results: Sequence[TrialResult], notes: Sequence[Evidence]) -> Conclusion:
    """The best finished run, else the prior; `notes` end the evidence."""
    finished = [result for result in results if loss(context, result) < inf]
    if not finished:
        setting = prior_setting(context)
        claim = note("No run has finished: this is the prior, nothing has been measured.")
    else:
        best = min(finished, key=lambda result: loss(context, result))
        setting = best.asked.hyper_parameters
        claim = Evidence(
            claim=f"Best of {len(finished)} runs by {context.wishes.metric}, one seed each, untested.",
            value=loss(context, best),
            unit=unit(context),
        )
    answer = f"rank {setting.r}, learning rate {setting.learning_rate:g}, batch size {setting.batch_size}"
    return Conclusion(hyper_parameters=setting, evidence=(claim, *notes), answers={Stage.RANK: (answer, {})})
