"""Where the wall clock went, as parts of one bar. Knows no markup."""

from __future__ import annotations

from dataclasses import dataclass

from loratune.reporting.facts import RunCost
from loratune.reporting.wording import duration, size


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """A quantity as it was predicted and as it came."""

    name: str
    predicted: str
    taken: str
    ratio: str
    """Taken over predicted; a dash where one is not known."""


def predictions(cost: RunCost) -> list[Prediction]:
    """Time and memory."""
    told = (
        ("time", duration, cost.predicted_seconds, cost.seconds),
        ("peak memory", lambda value: size(int(value)), cost.predicted_bytes, cost.measured_bytes),
    )
    return [
        Prediction(
            name=name,
            predicted=words(predicted) if predicted else "–",
            taken=words(taken) if taken else "not measured",
            ratio=f"{taken / predicted:.2f}" if predicted and taken else "–",
        )
        for name, words, predicted, taken in told
    ]
