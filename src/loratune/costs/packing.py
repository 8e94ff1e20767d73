"""How trials share packs: which starts when, so that the last one ends as early as possible.

A pack takes one step after the other; in each, every live trial takes one of its own. A step costs what
`StepTime` says for the tokens of all live trials. A trial that ends makes room, and the next that fits
begins at once: so a plan is an order and a number of slots, and what it takes is found by playing it.
Knows steps, tokens and bytes; no trial, no device.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf

import numpy as np
import numpy.typing as npt

from loratune.costs.step_time import StepTime
from loratune.errors import ResourceError

_WORTH = 0.98
"""Another plan than the first is taken if it needs less than this share of its time: measurements are noisy."""

GOOD = 1.02
"""A plan that takes at most this multiple of the bound is not improved."""
_TRIALS_PLAYED = 30_000
"""Trials times plans that are played: about half a second."""
_MOST_PLAYS = 500
_MOST_PARTS = 32
"""Parts of the memory in the bounds that count how many trials fit side by side."""
_MOST_THRESHOLDS = 24
"""Values of e that `fewest_steps` tries; any choice of them gives a bound."""
_ROUNDING = 1e-9

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialLoad:
    """What one trial asks for."""

    steps: int
    tokens: float
    """Tokens per step."""
    memory: int
    """Bytes that it holds while it is live."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackPlan:
    """The order in which trials start, how many run at once, and how long that takes."""

    order: tuple[int, ...]
    """Numbers of the trials. Whenever there is room, the first of them that fits begins."""
    slots: int
    """Trials live at once, at most."""
    memory: float
    """Bytes for live trials, at most."""
    seconds: float
    """Predicted, without evaluations."""
    bound: float
    """Seconds that no plan can go below; see `lower_bound`."""
    steps: int
    """Steps of the pack."""
    widest: int
    """Most trials that are live at once."""
    peak: int
    """Most bytes that live trials hold at once."""
    tokens: float
    """Most tokens of a step."""

    @property
    def gap(self) -> float:
        """How much longer than the bound it takes, as a share of the bound; 0 for no trials."""
        return self.seconds / self.bound - 1 if self.bound else 0.0


class Admission:
    """Trials that wait, in order, and the room that is left on a device: says which trial begins next.

    A trial that asks for more than all the room fills it: it runs alone.
    """

    def __init__(self, memory: Sequence[float], order: Sequence[int], *, slots: int, room: float) -> None:
        self.slots = slots
        """Free slots."""
        self._order = order
        self._whole = self._room = room
        self._memory = np.minimum([float(memory[i]) for i in order], room)
        self._place = {trial: place for place, trial in enumerate(order)}
        self._waiting = self._memory.copy()

    def next(self) -> int | None:
        """The first waiting trial that fits beside the live ones, now live itself; None where none does."""
        if self.slots < 1 or not len(self._order):
            return None
        place = int(np.argmax(self._waiting <= self._room))
        if not self._waiting[place] <= self._room:
            return None
        self._waiting[place] = np.inf
        self.slots -= 1
        self._room -= self._memory[place]
        return self._order[place]

    def add(self, memory: Sequence[float], *, trials: Sequence[int] | None = None, room: float = inf) -> None:
        """More trials wait at the end; `room` where there is less with them.

        `trials`: their numbers; None: numbered on from those before.
        """
        lost = max(0.0, self._whole - room)
        self._whole -= lost
        self._room -= lost
        first = len(self._order)
        numbers = range(first, first + len(memory)) if trials is None else trials
        self._order = [*self._order, *numbers]
        self._place |= {trial: first + i for i, trial in enumerate(numbers)}
        asked = np.minimum(np.array(memory, float), self._whole)
        self._memory = np.append(self._memory, asked)
        self._waiting = np.append(self._waiting, asked)

    def give(self, room: float = inf) -> int | None:
        """The last waiting trial that takes at most `room`, which waits here no more; None where there is none."""
        places = np.flatnonzero(self._waiting <= room)
        if not len(places):
            return None
        last = int(places[-1])
        self._waiting[last] = np.inf
        return self._order[last]

    @property
    def room(self) -> float:
        """Bytes that are free; none without a free slot."""
        return self._room if self.slots > 0 else -inf

    @property
    def waiting(self) -> int:
        """Trials that have not begun."""
        return int(np.isfinite(self._waiting).sum())

    @property
    def empty(self) -> bool:
        """Whether no trial waits."""
        return not self.waiting

    def ended(self, trial: int) -> None:
        """A live trial makes room."""
        self.slots += 1
        self._room += self._memory[self._place[trial]]


def plan_packs(
    loads: Sequence[TrialLoad], *, slots: int, memory: float, times: StepTime, enough: float = 0.0
) -> PackPlan:
    """The best of some list schedules, played with the measured times; deterministic.

    While the best is more than 2 % above the bound: orders (`_orders`) on all slots; then on fewer (`_slot_counts`),
    which can be faster, since a step of few trials costs little more than its launch and a balanced second wave
    beats a full first one; then swaps of two trials in the best order, half of them on another number of slots.

    Args:
        slots: trials that a pack may hold, at least 1.
        memory: bytes that live trials may hold together.
        enough: seconds that need not be improved upon.

    Raises `ResourceError` where a trial alone does not fit.
    """
    if slots < 1 or any(load.memory > memory for load in loads):
        largest = max((load.memory for load in loads), default=0)
        raise ResourceError(
            f"every trial must fit in memory alone: the largest adapter takes {largest / 2**30:.2f} GiB with its "
            f"gradients and moments and {max(0.0, memory) / 2**30:.2f} GiB are left; use a smaller model, a lower rank "
            "or shorter rows."
        )
    bound = lower_bound(loads, slots=slots, memory=memory, times=times)
    good = max(GOOD * bound, enough)
    orders = list(_orders(loads))
    counts = _slot_counts(loads, slots, memory)
    grid = [(order, count) for count in counts for order in orders]
    plays = max(len(orders), min(_MOST_PLAYS, _TRIALS_PLAYED // max(1, len(loads))))
    best = _play(loads, *grid[0], memory, times)
    for order, count in grid[1:plays]:
        if best.seconds <= good:
            break
        best = _better(_play(loads, order, count, memory, times), best, _WORTH)
    random = np.random.default_rng(0)
    for tried in range(plays - len(grid) if len(loads) > 1 else 0):
        if best.seconds <= good:
            break
        swapped = list(best.order)
        i, j = random.integers(len(swapped), size=2)
        swapped[i], swapped[j] = swapped[j], swapped[i]
        count = counts[tried // 2 % len(counts)] if tried % 2 else best.slots
        best = _better(_play(loads, swapped, count, memory, times), best)
    return replace(best, bound=bound)


def _better(plan: PackPlan, best: PackPlan, worth: float = 1.0) -> PackPlan:
    return plan if plan.seconds < worth * best.seconds else best


def _orders(loads: Sequence[TrialLoad]) -> Iterator[tuple[int, ...]]:
    """Different ones only; ties in the order given."""
    steps = np.array([load.steps for load in loads], float)
    memory = np.array([load.memory for load in loads], float)
    tokens = np.array([load.tokens for load in loads], float)
    longest = steps / (steps.max(initial=0.0) + 1)
    mixed = _mixed(steps, list(zip(tokens.tolist(), strict=True)))
    both = _mixed(steps, list(zip(tokens.tolist(), memory.tolist(), strict=True)))
    big = (memory > memory.max(initial=0.0) / 2).astype(float)
    seen = set()
    for key in (steps, -mixed, -both, memory + longest, big - mixed, steps * memory, steps * tokens):
        order = tuple(np.argsort(-key, kind="stable").tolist())
        if order not in seen:
            seen.add(order)
            yield order


def _mixed(steps: Numbers, kinds: Sequence[tuple[float, ...]]) -> Numbers:
    """When each trial begins, in [0, 1), if every kind is to last until the end, its longest trials first."""
    when = np.zeros(len(steps))
    of_kind: dict[tuple[float, ...], list[int]] = {}
    for trial in np.argsort(-steps, kind="stable").tolist():
        of_kind.setdefault(kinds[trial], []).append(trial)
    for members in of_kind.values():
        ends = np.cumsum(steps[members])
        when[members] = (ends - steps[members]) / ends[-1]
    return when


def _slot_counts(loads: Sequence[TrialLoad], slots: int, memory: float) -> list[int]:
    """All; just enough for the fewest steps, and somewhat more; those that divide the trials into equal waves."""
    trials = max(1, len(loads))
    if not loads:
        return [slots]
    most = min(slots, trials)
    enough = sum(load.steps for load in loads) / fewest_steps(loads, slots=slots, memory=memory)
    waves = ceil(trials / most)
    found = [most, *(ceil(enough * share) for share in (1.0, 1.1, 1.25, 1.5))]
    found += [ceil(trials / count) for count in range(waves, waves + 4)]
    return [count for count in dict.fromkeys(found) if count <= most]


def _play(
    loads: Sequence[TrialLoad], order: Sequence[int], slots: int, memory: float, times: StepTime
) -> PackPlan:
    """The plan as the engine will run it, event by event."""
    admission = Admission([load.memory for load in loads], order, slots=slots, room=memory)
    ends: dict[int, int] = {}
    now, seconds, tokens, held = 0, 0.0, 0.0, 0
    widest, peak, most = 0, 0, 0.0
    while True:
        while (trial := admission.next()) is not None:
            ends[trial] = now + loads[trial].steps
            tokens += loads[trial].tokens
            held += loads[trial].memory
        if not ends:
            break
        widest, peak, most = max(widest, len(ends)), max(peak, held), max(most, tokens)
        until = min(ends.values())
        seconds += (until - now) * times.seconds(tokens)
        now = until
        for trial in [trial for trial, end in ends.items() if end == now]:
            del ends[trial]
            tokens -= loads[trial].tokens
            held -= loads[trial].memory
            admission.ended(trial)
    return PackPlan(
        order=tuple(order), slots=slots, memory=memory, seconds=seconds, bound=0.0, steps=now, widest=widest,
        peak=peak, tokens=most,
    )  # fmt: skip


def lower_bound(loads: Sequence[TrialLoad], *, slots: int, memory: float, times: StepTime) -> float:
    """Seconds below which no plan of these trials can go, whatever it starts when.

    Every plan takes at least S steps (`fewest_steps`). Take any a ≥ 0 off each of its steps: what is left of a step
    of T tokens, seconds(T) - a, is shared out among its trials by their tokens, and as T ≥ t for each of them, a trial
    of t tokens bears at least t · min over T ≥ t of (seconds(T) - a) / T (`StepTime.least_rate`) at each of
    its steps. So seconds ≥ a · S + Σ steps · t · least_rate(t, a); the largest over the a of `StepTime.intercepts` is a
    bound. With a = 0 it is the work at the best throughput that steps of that size can have, with the largest a
    the steps at the cost of a launch. And a trial alone takes a step of at least its own tokens for each of its
    steps, since more tokens never take less.
    """
    if not loads:
        return 0.0
    steps = fewest_steps(loads, slots=slots, memory=memory)
    work: dict[float, float] = defaultdict(float)
    for load in loads:
        work[load.tokens] += load.steps * load.tokens
    longest = max(load.steps * times.seconds(load.tokens) for load in loads)
    shared = (
        a * steps + sum(total * times.least_rate(tokens, a) for tokens, total in work.items())
        for a in times.intercepts
    )
    return max(longest, *shared)


def fewest_steps(loads: Sequence[TrialLoad], *, slots: int, memory: float) -> int:
    """Steps below which no pack can end.

    A trial that takes more than the share 1 - e of the memory runs beside none that takes e or more. So for any e
    the steps are at least those of the former, one after the other, and those that the latter need among
    themselves (`_at_least`); e = 1 leaves only these, for all trials.
    """
    steps = np.array([load.steps for load in loads], float)
    share = np.array([load.memory for load in loads], float) / max(memory, 1.0)
    halves = np.unique(share[share <= 0.5])
    best = _at_least(steps, share, slots)
    for e in halves[:: ceil(len(halves) / _MOST_THRESHOLDS) or 1]:
        large = share > 1 - e + _ROUNDING
        middle = ~large & (share >= e)
        best = max(best, float(steps[large].sum()) + _at_least(steps[middle], share[middle], slots))
    return ceil(best - 1e-6)


def _at_least(steps: Numbers, share: Numbers, slots: int) -> float:
    """The largest of five bounds on the steps of trials that take these shares of the memory.

    - The longest trial; and as at most `slots` are live, Σ steps / slots.
    - Area: a share x counts f(x), where shares that add up to at most 1 count at most 1 together; then
      S ≥ Σ steps · f(x). f(x) = x; and ⌊(k + 1) x⌋ / k, or x where (k + 1) x is whole (dual feasible functions,
      Fekete and Schepers 2001).
    - Pigeonhole: trials of a share above 1 / (m + 1) run at most m at once. Of the k · m + 1 longest of them, some
      chain of m holds k + 1, so S is at least the sum of the k + 1 shortest of those. (Any schedule of at
      most m at once is m chains: a trial joins one that is free when it begins.) The same for all and the slots.
    - Pairs: of trials that do not fit all at once some two never run together, since intervals that meet two by two
      have a point in common (Helly); so S is at least the sum of the two shortest.
    """
    if not len(steps):
        return 0.0
    best = max(float(steps.max()), float(steps.sum()) / slots, float(steps @ share))
    for k in range(1, _MOST_PARTS):
        parts = (k + 1) * share
        whole = np.abs(parts - np.round(parts)) < _ROUNDING
        best = max(best, float(steps @ np.where(whole, share, np.floor(parts) / k)))
    for m in range(1, min(slots, len(steps)) + 1):
        chosen = steps if m == slots else steps[share * (m + 1) > 1 + _ROUNDING]
        best = max(best, _pigeonhole(np.sort(chosen)[::-1], m))
    return max(best, _pairs(steps, share))


def _pairs(steps: Numbers, share: Numbers) -> float:
    """max over sets that take more than all memory of their two shortest: j, and the longest i that is short enough.

    Beside i and j a set has all trials that are longer than i: they take memory and are not among the shortest.
    """
    order = np.argsort(-steps, kind="stable")
    steps, share = steps[order], share[order]
    i = np.searchsorted(np.cumsum(share), 1 + _ROUNDING - share, side="right")
    j = np.arange(len(steps))
    found = i < j
    return float(np.max(steps[i[found]] + steps[j[found]], initial=0.0))


def _pigeonhole(longest_first: Numbers, m: int) -> float:
    """max over k ≥ 1 of the sum of trials k·m − k … k·m (counted from 0) of those sorted longest first."""
    sums = np.concatenate([[0.0], np.cumsum(longest_first)])
    k = np.arange(1, (len(longest_first) - 1) // m + 1)
    return float(np.max(sums[k * m + 1] - sums[k * m - k], initial=0.0))
