"""What all strategies share: asking by replay, and a decision with its stages. Knows no hyper-parameter."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from loratune.search.procedure import Ledger, Procedure, ask, decide
from loratune.search.summary import stage_summary
from loratune.values import (
    Decision,
    Evidence,
    HyperParameters,
    PlannedStage,
    SearchContext,
    Stage,
    Trial,
    TrialResult,
)

Answers = dict[Stage, tuple[str, dict[str, Any]]]
"""Each stage's answer in words, and the numbers behind it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conclusion:
    """The result of a search."""

    hyper_parameters: HyperParameters
    evidence: tuple[Evidence, ...]
    answers: Answers


@dataclass(frozen=True, slots=True)
class StagedStrategy(ABC):
    """A strategy written as a procedure that answers one question after the other."""

    context: SearchContext
    name: str

    questions: ClassVar[Mapping[Stage, str]]
    """Questions in the order in which they are answered."""

    @abstractmethod
    def search(self, ledger: Ledger) -> Procedure[Conclusion]:
        """The whole search. Raises `BudgetError` where the budget pays for no trial."""

    def ask(self, history: Sequence[TrialResult], running: Sequence[Trial] = ()) -> tuple[Trial, ...]:
        """The next trials, within the budget; empty when nothing is left to ask, or not before the running end."""
        return ask(self.search, self.context, history, running)

    def decide(self, history: Sequence[TrialResult]) -> Decision:
        """The answer that this history supports."""
        found = decide(self.search, self.context, history)
        return Decision(
            hyper_parameters=found.hyper_parameters,
            evidence=found.evidence,
            stages=tuple(
                stage_summary(stage, self.questions[stage], answer, history, details)
                for stage, (answer, details) in found.answers.items()
            ),
            settled=not self.ask(history),
        )

    def planned(
        self,
        counts: Mapping[Stage, tuple[int, float]],
        first: tuple[Trial, ...],
        notes: Mapping[Stage, str] | None = None,
    ) -> tuple[PlannedStage, ...]:
        """The stages from their (trials, cost); `first` are the trials of the first question."""
        opening = next(iter(self.questions))
        return tuple(
            PlannedStage(
                name=str(stage),
                question=self.questions[stage],
                trials=trials,
                cost=cost,
                examples=first if stage is opening else (),
                note=(notes or {}).get(stage, ""),
            )
            for stage, (trials, cost) in counts.items()
        )
