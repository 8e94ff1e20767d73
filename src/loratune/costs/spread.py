"""How trials are shared out over several devices of a kind, so that the last one ends as early as possible.

Each device then packs its share as `packing` says. Knows loads and step times; no trial, no device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from loratune.costs.packing import GOOD, Numbers, PackPlan, TrialLoad, lower_bound, plan_packs
from loratune.costs.step_time import StepTime


@dataclass(frozen=True, kw_only=True, slots=True)
class SpreadPlan:
    """Which trial trains on which device, and how long that takes."""

    parts: tuple[PackPlan, ...]
    """Each device's plan; their orders hold the numbers of the trials."""
    bound: float
    """Seconds that no plan can go below; see `spread_bound`."""

    @property
    def seconds(self) -> float:
        """Seconds of the device that ends last, without evaluations."""
        return max(part.seconds for part in self.parts)

    @property
    def slots(self) -> int:
        """Trials side by side on a device, at most."""
        return max(part.slots for part in self.parts)

    @property
    def memory(self) -> float:
        """Bytes for live trials, at most, on the device that has least."""
        return min(part.memory for part in self.parts)

    @property
    def steps(self) -> int:
        """Steps of the device that takes most."""
        return max(part.steps for part in self.parts)

    @property
    def widest(self) -> int:
        """Most trials that are live at once on a device."""
        return max(part.widest for part in self.parts)

    @property
    def tokens(self) -> float:
        """Most tokens of a step."""
        return max(part.tokens for part in self.parts)


class Shares:
    """What devices have to do, trial by trial; says which of them ends first with one more.

    A device is taken to need, for the intercept a for which that is most, a for each of its steps and for each token
    of a step the least that a token takes beside it (`packing.lower_bound`). A device takes at least as many steps as
    its longest trial and as its slots and its memory make of all.
    """

    def __init__(self, devices: int, *, slots: int, memory: float, times: StepTime) -> None:
        self._slots, self._memory, self._times = slots, max(memory, 1.0), times
        self._intercepts = np.array(times.intercepts)
        self._rates: dict[float, Numbers] = {}
        self._work = np.zeros((devices, len(self._intercepts)))
        self._most = np.zeros((devices, 4))
        """[devices, 4] of steps: of the longest trial, of all by the slots, of all by the memory; seconds alone."""

    def take(self, load: TrialLoad) -> int:
        """The device for one more trial, which counts as its own from now on; the first of several."""
        work = load.steps * load.tokens * self.least_rates(load.tokens)
        steps = self._most.copy()
        alone = load.steps * self._times.seconds(load.tokens)
        steps[:, 0] = np.maximum(steps[:, 0], load.steps)
        steps[:, 1] += load.steps / self._slots
        steps[:, 2] += load.steps * load.memory / self._memory
        steps[:, 3] = np.maximum(steps[:, 3], alone)
        shared = self._intercepts * steps[:, :3].max(1)[:, None] + self._work + work
        device = int(np.argmin(np.maximum(shared.max(1), steps[:, 3])))
        self._work[device] += work
        self._most[device] = steps[device]
        return device

    def least_rates(self, tokens: float) -> Numbers:
        """[intercepts] seconds per token of a step of at least `tokens` tokens."""
        if tokens not in self._rates:
            found = [self._times.least_rate(tokens, a) for a in self._times.intercepts]
            self._rates[tokens] = np.array(found)
        return self._rates[tokens]


def spread(
    loads: Sequence[TrialLoad], *, devices: int, slots: int, memory: float, times: StepTime
) -> SpreadPlan:
    """Trials in descending order of the seconds that they need, each to the device that ends first with it.

    Raises `ResourceError` where a trial alone does not fit.
    """
    if devices == 1:
        plan = plan_packs(loads, slots=slots, memory=memory, times=times)
        return SpreadPlan(parts=(plan,), bound=plan.bound)
    shares = Shares(devices, slots=slots, memory=memory, times=times)
    members: list[list[int]] = [[] for _ in range(devices)]
    for trial in _heaviest_first(loads, times):
        members[shares.take(loads[trial])].append(trial)
    bound = spread_bound(loads, devices=devices, slots=slots, memory=memory, times=times)
    known: dict[tuple[TrialLoad, ...], PackPlan] = {}
    parts = []
    for numbers in members:
        part = tuple(loads[trial] for trial in numbers)
        if part not in known:
            known[part] = plan_packs(part, slots=slots, memory=memory, times=times, enough=GOOD * bound)
        parts.append(_renamed(known[part], numbers))
    return SpreadPlan(parts=tuple(parts), bound=bound)


def _heaviest_first(loads: Sequence[TrialLoad], times: StepTime) -> list[int]:
    alone = [load.steps * times.seconds(load.tokens) for load in loads]
    return sorted(range(len(loads)), key=lambda trial: -alone[trial])


def _renamed(plan: PackPlan, numbers: Sequence[int]) -> PackPlan:
    return replace(plan, order=tuple(numbers[trial] for trial in plan.order))


def spread_bound(
    loads: Sequence[TrialLoad], *, devices: int, slots: int, memory: float, times: StepTime
) -> float:
    """Seconds below which no plan of these trials on that number of devices can go.

    Put one after the other, the packs of all devices are a plan of one, so that they take its bound together and the
    last one at least its share. No device is faster than a trial alone. And of the k · devices + 1 trials with most
    work, some device has k + 1: it takes at least a for each step of the longest of them, which has no fewer than the
    shortest of all of them has, and the work of the k + 1 with least (`packing.lower_bound` says what a and work are).
    """
    if not loads:
        return 0.0
    alone = max(load.steps * times.seconds(load.tokens) for load in loads)
    together = lower_bound(loads, slots=slots, memory=memory, times=times)
    return max(alone, together / devices, _pigeonhole(loads, devices, times))


def _pigeonhole(loads: Sequence[TrialLoad], devices: int, times: StepTime) -> float:
    steps = np.array([load.steps for load in loads], float)
    best = 0.0
    for a in times.intercepts:
        rates = {load.tokens: times.least_rate(load.tokens, a) for load in loads}
        work = np.array([load.steps * load.tokens * rates[load.tokens] for load in loads])
        order = np.argsort(-work, kind="stable")
        fewest = np.minimum.accumulate(steps[order])
        sums = np.concatenate([[0.0], np.cumsum(work[order])])
        for k in range(1, (len(loads) - 1) // devices + 1):
            last = k * devices  # the k · devices + 1 trials end here
            found = a * float(fewest[last]) + float(sums[last + 1] - sums[last - k])
            best = max(best, found)
    return best
