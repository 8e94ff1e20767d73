"""Where the wall clock went, as parts of one bar. Knows no markup."""

from __future__ import annotations

from dataclasses import dataclass

from loratune.reporting.facts import RunCost
from loratune.reporting.wording import duration


@dataclass(frozen=True, kw_only=True, slots=True)
class TimelinePart:
    """A stretch of the bar."""

    name: str
    percent: float
    """Of the whole."""
    time: str


def timeline_parts(cost: RunCost) -> list[TimelinePart]:
    """In the order in which they come, without those that took no time; they sum to 100 %."""
    whole = sum(seconds for _, seconds in cost.timeline)
    return [
        TimelinePart(name=name, percent=100 * seconds / whole, time=duration(seconds))
        for name, seconds in cost.timeline
        if seconds > 0
    ]
