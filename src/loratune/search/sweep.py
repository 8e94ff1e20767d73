"""Strategies that fix all their trials beforehand and take the best: full grid and random.

They test nothing; their evidence says so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

from loratune.search.claims import note
from loratune.search.compare import loss, unit
from loratune.search.procedure import Ledger, Procedure, ask, decide
from loratune.search.space import prior_setting
from loratune.search.summary import stage_summary
from loratune.values import (
    Decision,
    Evidence,
    HyperParameters,
    PlannedStage,
    SearchContext,
    SearchPlan,
    Stage,
    Trial,
    TrialResult,
)

QUESTION = "Which of these settings has the best value?"


@dataclass(frozen=True, kw_only=True, slots=True)
class Design:
    """All trials of a sweep, fitted to the budget, and what was left out."""

    trials: tuple[Trial, ...]
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SweepStrategy:
    """Runs a design made in advance."""

    context: SearchContext
    name: str
    design: Callable[[SearchContext], Design]
    """Raises `BudgetError` where the budget pays for no trial."""

    def plan(self) -> SearchPlan:
        """All trials, in one stage."""
        design = self.design(self.context)
        stage = PlannedStage(
            name=str(Stage.RANK),
            question=QUESTION,
            trials=len(design.trials),
            cost=sum(self.context.cost(trial) for trial in design.trials),
            examples=design.trials,
        )
        return SearchPlan(stages=(stage,), dropped=design.dropped)

    def ask(self, history: Sequence[TrialResult]) -> tuple[Trial, ...]:
        """Trials of the design that have no result yet."""
        return ask(self._search, self.context, history)

    def decide(self, history: Sequence[TrialResult]) -> Decision:
        """The best finished trial; the prior where there is none."""
        setting, evidence = decide(self._search, self.context, history)
        answer = f"rank {setting.r}, learning rate {setting.learning_rate:g}, batch size {setting.batch_size}"
        return Decision(
            hyper_parameters=setting,
            evidence=evidence,
            stages=(stage_summary(Stage.RANK, QUESTION, answer, history),),
            settled=not self.ask(history),
        )

    def _search(self, ledger: Ledger) -> Procedure[tuple[HyperParameters, tuple[Evidence, ...]]]:
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
        return setting, (*evidence, *(note(sentence) for sentence in design.dropped))
