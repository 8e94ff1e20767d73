"""Trials of a plan in the order in which they begin; more are asked for while others still run. Trains nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from loratune.costs.packing import Admission, PackPlan, TrialLoad
from loratune.runners.runner import More
from loratune.values import HyperParameters, Trial, TrialResult


class Plans(Protocol):
    """A planner, or one that learns."""

    def load(self, trial: Trial) -> TrialLoad: ...

    def plan(self, trials: Sequence[Trial]) -> PackPlan: ...

    def room(self, trials: Sequence[HyperParameters]) -> int: ...


class TrialQueue:
    """Says which trial takes a free slot."""

    def __init__(self, planner: Plans, trials: Sequence[Trial], more: More | None = None) -> None:
        plan = planner.plan(trials)
        memory = [planner.load(trial).memory for trial in trials]
        self.slots = plan.slots
        """Trials beside each other, at most."""
        self.results: list[TrialResult] = []
        """Of those that have ended, in that order."""
        self.running: dict[str, Trial] = {}
        """By key."""
        self._planner, self._more = planner, more
        self._asked = list(trials)
        self._number = {trial.key: i for i, trial in enumerate(trials)}
        self._admission = Admission(memory, plan.order, slots=plan.slots, room=plan.memory)

    def next(self) -> Trial | None:
        """The trial that begins now; None where none fits. With none waiting and others running, more are asked for."""
        if self._more is not None and self._admission.empty and self.running:
            self._add(self._more(self.results, tuple(self.running.values())))
        chosen = self._admission.next()
        if chosen is None:
            return None
        trial = self._asked[chosen]
        self.running[trial.key] = trial
        return trial

    def ended(self, trial: Trial, result: TrialResult | None) -> None:
        """A running trial makes room; its result counts from now on, None where it has none."""
        self._admission.ended(self._number[trial.key])
        del self.running[trial.key]
        if result is not None:
            self.results.append(result)

    def _add(self, further: Sequence[Trial]) -> None:
        memory = [self._planner.load(trial).memory for trial in further]
        everybody = [trial.hyper_parameters for trial in (*self._asked, *further)]
        self._admission.add(memory, room=self._planner.room(everybody))
        self._number.update({trial.key: len(self._asked) + i for i, trial in enumerate(further)})
        self._asked.extend(further)
