"""Searches written as straight-line procedures, replayed from the history.

A procedure is a generator: it yields the trials it wants and is sent the results that it gets. `ask` runs it
from its start against the history until it wants something that is missing; `decide` runs it to its end with
what there is. So a strategy is a pure function of the history, whatever the order, and can resume at any point.
Knows nothing of hyper-parameters.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from loratune.values import SearchContext, Trial, TrialResult

T = TypeVar("T")
Wanted = tuple[Trial, ...]
Results = tuple[TrialResult, ...]
Procedure = Generator[Wanted, Results, T]

ROUNDING = 1e-9


@dataclass(slots=True)
class Ledger:
    """What the procedure has spent so far in this replay, in runs alone, and which trials it could not pay for."""

    budget: float
    spent: float = 0.0
    refused: dict[str, Trial] = field(default_factory=dict)
    """Trials, by key, that the budget did not pay for."""

    @property
    def left(self) -> float:
        return self.budget - self.spent


Search = Callable[[Ledger], Procedure[T]]


class Wave:
    """Cost of trials that are asked for together: each counts what it adds to those before it.

    By what is expected of them, never by a clock, so that a resumed search decides alike. Without a pace a result
    says itself what it cost; with one it was free only where it says 0, such as a cell of a table that was run before.
    """

    def __init__(self, context: SearchContext) -> None:
        self._context, self._trials, self._cost = context, list[Trial](), 0.0

    def cost_of(self, trial: Trial, result: TrialResult | None = None) -> float:
        """What the trial would add."""
        if result is not None and (self._context.costs.pace is None or result.cost == 0):
            return result.cost
        if self._context.costs.pace is None:
            return self._context.cost(trial)
        return self._context.wave_cost([*self._trials, trial]) - self._cost

    def add(self, trial: Trial, result: TrialResult | None = None) -> None:
        """Takes the trial in."""
        if result is None or result.cost > 0:
            self._cost += self.cost_of(trial)
            self._trials.append(trial)


def ask(
    search: Search[T], context: SearchContext, history: Sequence[TrialResult], running: Sequence[Trial] = ()
) -> Wanted:
    """The trials that the procedure wants next, within the budget; empty when it has ended.

    `running` were asked before and have no result yet: nothing is asked for that depends on them.
    """
    missing, _ = _replay(search, context, history, running, stop_at_missing=True)
    return missing


def decide(search: Search[T], context: SearchContext, history: Sequence[TrialResult]) -> T:
    """What the procedure returns if it gets no more results than these."""
    _, answer = _replay(search, context, history, (), stop_at_missing=False)
    assert answer is not None
    return answer


def _replay(
    search: Search[T],
    context: SearchContext,
    history: Sequence[TrialResult],
    running: Sequence[Trial],
    *,
    stop_at_missing: bool,
) -> tuple[Wanted, T | None]:
    known = {result.asked.key: result for result in history}
    started = {trial.key for trial in running}
    ledger = Ledger(budget=context.wishes.budget)
    paid: set[str] = set()
    new: dict[str, Trial] = {}
    procedure = search(ledger)
    results: Results | None = None
    while True:
        try:
            wanted = next(procedure) if results is None else procedure.send(results)
        except StopIteration as end:
            return tuple(new.values()), end.value
        found: list[TrialResult] = []
        missing: set[str] = set()
        wave = Wave(context)
        for key, trial in unique(wanted).items():
            result = known.get(key)
            cost = 0.0 if key in paid else wave.cost_of(trial, result)
            if result is not None:
                found.append(result)
            elif key in started or key in new:
                missing.add(key)
            elif cost <= ledger.left + ROUNDING:
                missing.add(key)
                new[key] = trial
            else:
                ledger.refused[key] = trial
                continue
            if key not in paid:
                paid.add(key)
                wave.add(trial, result)
                ledger.spent += cost
        if missing and stop_at_missing:
            return tuple(new.values()), None
        results = tuple(found)


def unique(trials: Iterable[Trial]) -> dict[str, Trial]:
    """The trials by key, each once, in order."""
    found: dict[str, Trial] = {}
    for trial in trials:
        found.setdefault(trial.key, trial)
    return found
