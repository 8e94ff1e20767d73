"""The interface of a search strategy: pure functions from the history to the next trials."""

from collections.abc import Sequence
from typing import Protocol

from loratune.values import Decision, SearchContext, SearchPlan, Trial, TrialResult


class Strategy(Protocol):
    """Built from a `SearchContext`; holds no state besides it.

    The driver repeats: ask with all results so far, run what comes back, add the results. A strategy
    recognises its own trials by `result.asked.key`; in a simulated run `result.trial` may be another cell.
    The order of the history carries no meaning.
    """

    @property
    def name(self) -> str: ...

    @property
    def context(self) -> SearchContext: ...

    def plan(self) -> SearchPlan:
        """What it would run if everything goes as expected, fitted to `context.budget`."""
        ...

    def ask(self, history: Sequence[TrialResult], running: Sequence[Trial] = ()) -> tuple[Trial, ...]:
        """Trials to run now, none of them in the history or running.

        Empty when the search is settled, or with trials `running` when all else depends on them.
        """
        ...

    def decide(self, history: Sequence[TrialResult]) -> Decision:
        """The best answer that the history supports; may be asked at any time, as a clock may cut the search."""
        ...
