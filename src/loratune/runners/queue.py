"""Trials of a plan in the order in which they begin; more are asked for while others still run. Trains nothing."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Protocol

from loratune.costs.packing import Admission, PackPlan, TrialLoad
from loratune.runners.runner import More
from loratune.values import HyperParameters, Trial, TrialResult


class Plans(Protocol):
    """A planner, or one that learns."""

    def load(self, trial: Trial) -> TrialLoad: ...

    def plan(self, trials: Sequence[Trial]) -> PackPlan: ...

    def room(self, trials: Sequence[HyperParameters]) -> int: ...


class Queue(Protocol):
    """Who brings the trials of one pack."""

    @property
    def slots(self) -> int:
        """Trials beside each other, at most."""

    def next(self) -> Trial | None:
        """The trial that begins now; None where none does before another has ended."""

    def ended(self, trial: Trial, result: TrialResult | None) -> None:
        """A running trial makes room; None: it has no result."""


class TrialQueue:
    """Says which trial takes a free slot, on one device or on several of a kind."""

    def __init__(
        self, planner: Plans, trials: Sequence[Trial], more: More | None = None, *, devices: int = 1
    ) -> None:
        plan = planner.plan(trials)
        memory = [planner.load(trial).memory for trial in trials]
        self.slots = plan.slots
        """Trials beside each other on a device, at most."""
        self.results: list[TrialResult] = []
        """Of those that have ended, in that order."""
        self.running: dict[str, Trial] = {}
        """By key."""
        self._planner, self._more, self._devices = planner, more, devices
        self._device: dict[str, int] = {}
        """Of the running ones, by key."""
        self._asked = list(trials)
        self._number = {trial.key: i for i, trial in enumerate(trials)}
        self._admission = Admission(memory, plan.order, slots=plan.slots, room=plan.memory, devices=devices)

    @property
    def waiting(self) -> int:
        """Trials that have not begun."""
        return self._admission.waiting

    def next(self, device: int = 0) -> Trial | None:
        """The trial that begins now; None where none fits, or the device has its share of all that wait and run.

        With none waiting and others running, more are asked for.
        """
        if self._more is not None and self._admission.empty and self.running:
            self._add(self._more(self.results, tuple(self.running.values())))
        share = ceil((self.waiting + len(self.running)) / self._devices)
        if list(self._device.values()).count(device) >= share:
            return None
        chosen = self._admission.next(device)
        if chosen is None:
            return None
        trial = self._asked[chosen]
        self.running[trial.key] = trial
        self._device[trial.key] = device
        return trial

    def ended(self, trial: Trial, result: TrialResult | None) -> None:
        """A running trial makes room; its result counts from now on, None where it has none."""
        self._admission.ended(self._number[trial.key])
        del self.running[trial.key], self._device[trial.key]
        if result is not None:
            self.results.append(result)

    def _add(self, further: Sequence[Trial]) -> None:
        memory = [self._planner.load(trial).memory for trial in further]
        everybody = [trial.hyper_parameters for trial in (*self._asked, *further)]
        self._admission.add(memory, room=self._planner.room(everybody))
        self._number.update({trial.key: len(self._asked) + i for i, trial in enumerate(further)})
        self._asked.extend(further)
