"""How many trials trained beside each other at every moment of a run, from its events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from loratune.reporting.facts import PackSpan
from loratune.values.events import Event, Progress, StageBegan

PACKS = "packs"
"""The fact of a study that holds what an earlier part of a run gave."""
_MOST = 400
_CLOSE = 1.0
"""Seconds between two spans that count as one: evaluations, trials that enter and leave."""


class Occupancy:
    """A subscriber."""

    def __init__(self, *, started: float, clock: Callable[[], float] = monotonic) -> None:
        """`started`: as the user's clock began."""
        self._clock, self._started = clock, started
        self._stage = ""
        self._spans: list[PackSpan] = []

    def begin_with(self, earlier: Sequence[Sequence[Any]], seconds: float) -> None:
        """What `kept` gave in an earlier part of the run, which took so many seconds."""
        self._spans = [PackSpan(*each) for each in earlier]
        self._started -= seconds

    def __call__(self, event: Event) -> None:
        """Take notice of one event."""
        match event:
            case StageBegan(name=name):
                self._stage = name
            case Progress():
                now = self._clock() - self._started
                self._add(PackSpan(max(0.0, now - event.seconds), now, event.occupancy, self._stage))
            case _:
                pass

    def spans(self) -> tuple[PackSpan, ...]:
        """Up to now."""
        return tuple(self._spans)

    def kept(self) -> list[list[Any]]:
        """What a later part of the run begins with, as JSON values."""
        return [[each.began, each.ended, each.trials, each.stage] for each in self._spans]

    def _add(self, new: PackSpan) -> None:
        last = self._spans[-1] if self._spans else None
        if last and _goes_on(last, new):
            self._spans[-1] = _joined(last, new)
            return
        self._spans.append(new)
        if len(self._spans) > _MOST:
            pairs = zip(self._spans[::2], [*self._spans[1::2], None], strict=False)
            self._spans = [each for one, two in pairs for each in _thinned(one, two)]


def _goes_on(last: PackSpan, new: PackSpan) -> bool:
    alike = last.stage == new.stage and round(last.trials) == round(new.trials)
    return alike and new.began - last.ended <= _CLOSE


def _thinned(one: PackSpan, two: PackSpan | None) -> list[PackSpan]:
    """Both as one where they belong to the same stage."""
    if two is None:
        return [one]
    return [_joined(one, two)] if one.stage == two.stage else [one, two]


def _joined(one: PackSpan, two: PackSpan) -> PackSpan:
    first, second = one.ended - one.began, two.ended - two.began
    whole = max(first + second, 1e-9)
    trials = (one.trials * first + two.trials * second) / whole
    return PackSpan(one.began, two.ended, trials, one.stage)
