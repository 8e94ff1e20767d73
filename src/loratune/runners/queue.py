"""Trials of a plan in the order in which they begin; more are asked for while others still run. Trains nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from loratune.costs.packing import Admission, TrialLoad
from loratune.costs.spread import SpreadPlan
from loratune.runners.runner import More
from loratune.values import HyperParameters, Trial, TrialResult


class Plans(Protocol):
    """A planner, or one that learns."""

    def load(self, trial: Trial) -> TrialLoad: ...

    def plan(self, trials: Sequence[Trial]) -> SpreadPlan: ...

    def room(self, trials: Sequence[HyperParameters]) -> int: ...


class Queue(Protocol):
    """Who brings the trials of one pack."""

    @property
    def slots(self) -> int:
        """Trials side by side, at most."""

    def next(self) -> Trial | None:
        """The trial that begins now; None where none does before another has ended."""

    def ended(self, trial: Trial, result: TrialResult | None) -> None:
        """A running trial makes room; None: it has no result."""


class TrialQueue:
    """Says which trial takes a free slot, on each of the devices that the plan shares them out over.

    A device that runs out of work takes trials that wait for another.
    """

    def __init__(self, planner: Plans, trials: Sequence[Trial], more: More | None = None) -> None:
        plan = planner.plan(trials)
        self.slots = plan.slots
        """Trials side by side on a device, at most."""
        self.results: list[TrialResult] = []
        """Results of the trials that have ended, in that order."""
        self.running: dict[str, Trial] = {}
        """Running trials by key."""
        self._planner, self._more = planner, more
        self._asked = list(trials)
        self._number = {trial.key: i for i, trial in enumerate(trials)}
        self._loads = [planner.load(trial) for trial in trials]
        memory = [load.memory for load in self._loads]
        self._devices = [
            Admission(memory, part.order, slots=part.slots, room=part.memory) for part in plan.parts
        ]
        self._beyond = [part.memory - plan.memory for part in plan.parts]
        """Bytes that each device has beyond that with least."""
        self._full = [False] * len(self._devices)
        """Whether something waits there that did not fit when it was last asked."""
        self._place: dict[str, int] = {}
        """Devices of the running ones, by key."""
        self._left = [sum(map(self._work, part.order)) for part in plan.parts]
        """Tokens to be trained on each device, those of running trials in full."""

    @property
    def devices(self) -> int:
        """How many take trials."""
        return len(self._devices)

    @property
    def waiting(self) -> int:
        """Trials that have not begun."""
        return sum(device.waiting for device in self._devices)

    def next(self, device: int = 0) -> Trial | None:
        """The trial that begins there now; None where none does before another has ended.

        With none waiting and others running, more are asked for.
        """
        if self._more is not None and self.running and not self.waiting:
            self._add(self._more(self.results, tuple(self.running.values())))
        own = self._devices[device]
        if own.empty:
            self._help(device)
        chosen = own.next()
        self._full[device] = chosen is None and not own.empty
        if chosen is None:
            return None
        trial = self._asked[chosen]
        self.running[trial.key] = trial
        self._place[trial.key] = device
        return trial

    def ended(self, trial: Trial, result: TrialResult | None) -> None:
        """A running trial makes room; its result counts from now on, None where it has none."""
        self._leave(trial)
        if result is not None:
            self.results.append(result)

    def lost(self, device: int) -> tuple[Trial, ...]:
        """Queue again what ran there, after what waits; returns these trials."""
        trials = tuple(self.running[key] for key, place in self._place.items() if place == device)
        for trial in trials:
            number = self._leave(trial)
            self._devices[device].add([self._loads[number].memory], trials=[number])
            self._left[device] += self._work(number)
        self._full[device] = not self._devices[device].empty  # others may take them while it starts anew
        return trials

    def _leave(self, trial: Trial) -> int:
        number, device = self._number[trial.key], self._place.pop(trial.key)
        self._devices[device].ended(number)
        self._full[device] = False
        self._left[device] -= self._work(number)
        del self.running[trial.key]
        return number

    def _work(self, number: int) -> float:
        return self._loads[number].steps * self._loads[number].tokens

    def _help(self, device: int) -> None:
        """Take over what waits for room on the device that has most to do."""
        own = self._devices[device]
        for other in sorted(range(self.devices), key=lambda each: -self._left[each]):
            chosen = self._devices[other].give(own.room) if self._full[other] else None
            if chosen is not None:
                own.add([self._loads[chosen].memory], trials=[chosen])
                self._left[other] -= self._work(chosen)
                self._left[device] += self._work(chosen)
                return

    def _add(self, further: Sequence[Trial]) -> None:
        everybody = [trial.hyper_parameters for trial in (*self._asked, *further)]
        room = self._planner.room(everybody)
        for device, beyond in zip(self._devices, self._beyond, strict=True):
            device.add([], room=room + beyond)
        for trial in further:
            number, load = len(self._asked), self._planner.load(trial)
            self._number[trial.key] = number
            self._asked.append(trial)
            self._loads.append(load)
            least = self._left.index(min(self._left))
            self._devices[least].add([load.memory], trials=[number])
            self._left[least] += self._work(number)
