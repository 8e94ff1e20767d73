"""Searches written as straight-line procedures, replayed from the history.

A procedure is a generator: it yields the trials it wants and is sent the results that it gets. `ask` runs it
from its start against the history until it wants something that is missing; `decide` runs it to its end with
what there is. So a strategy is a pure function of the history, whatever the order, and resumes from any part.
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
    """What the procedure has spent so far in this replay, in full-run equivalents, and what it could not."""

    budget: float
    spent: float = 0.0
    refused: dict[str, Trial] = field(default_factory=dict)
    """Trials, by key, that the budget did not pay for."""

    @property
    def left(self) -> float:
        return self.budget - self.spent


Search = Callable[[Ledger], Procedure[T]]


def ask(search: Search[T], context: SearchContext, history: Sequence[TrialResult]) -> Wanted:
    """The trials that the procedure wants next, within the budget; empty when it has ended."""
    missing, _ = _replay(search, context, history, stop_at_missing=True)
    return missing


def decide(search: Search[T], context: SearchContext, history: Sequence[TrialResult]) -> T:
    """What the procedure returns if it gets no more results than these."""
    _, answer = _replay(search, context, history, stop_at_missing=False)
    assert answer is not None
    return answer


def _replay(
    search: Search[T], context: SearchContext, history: Sequence[TrialResult], *, stop_at_missing: bool
) -> tuple[Wanted, T | None]:
    known = {result.asked.key: result for result in history}
    ledger = Ledger(budget=context.budget)
    paid: set[str] = set()
    procedure = search(ledger)
    results: Results | None = None
    while True:
        try:
            wanted = next(procedure) if results is None else procedure.send(results)
        except StopIteration as end:
            return (), end.value
        found: list[TrialResult] = []
        missing: list[Trial] = []
        for key, trial in unique(wanted).items():
            result = known.get(key)
            cost = 0.0 if key in paid else context.cost(trial) if result is None else result.cost
            if result is not None:
                found.append(result)
            elif cost <= ledger.left + ROUNDING:
                missing.append(trial)
            else:
                ledger.refused[key] = trial
                continue
            paid.add(key)
            ledger.spent += cost
        if missing and stop_at_missing:
            return tuple(missing), None
        results = tuple(found)


def unique(trials: Iterable[Trial]) -> dict[str, Trial]:
    """The trials by key, each once, in order."""
    found: dict[str, Trial] = {}
    for trial in trials:
        found.setdefault(trial.key, trial)
    return found


def together(procedures: Iterable[Procedure[T]]) -> Procedure[tuple[T, ...]]:
    """Runs procedures side by side, so that their trials can share packs; returns their answers in order."""
    running = list(procedures)
    answers: dict[int, T] = {}
    wanted: dict[int, Wanted] = {}

    def advance(index: int, results: Results | None) -> None:
        wanted.pop(index, None)
        try:
            step = running[index]
            wanted[index] = next(step) if results is None else step.send(results)
        except StopIteration as end:
            answers[index] = end.value

    for index in range(len(running)):
        advance(index, None)
    while wanted:
        results = yield tuple(trial for request in wanted.values() for trial in request)
        for index, request in list(wanted.items()):
            keys = {trial.key for trial in request}
            advance(index, tuple(result for result in results if result.asked.key in keys))
    return tuple(answers[index] for index in range(len(running)))
