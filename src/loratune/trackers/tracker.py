"""What every experiment tracker receives of a run: plain values, nothing specific to one library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

PROJECT = "loratune"
"""Name under which trackers keep runs."""
Value = str | float | int


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackedRun:
    """A run as it begins."""

    name: str
    config: Mapping[str, Value]
    folder: Path
    """Folder for trackers that write files of their own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackedTrial:
    """A trial that has ended."""

    name: str
    parameters: Mapping[str, Value]
    curve: tuple[tuple[int, Mapping[str, float]], ...]
    """(step, values by name), finite ones only."""
    metrics: Mapping[str, float]
    """Values at its end, finite ones only."""
    began: float
    """Seconds since 1970; 0 where it is not known."""
    ended: float
    finished: bool
    """Whether it reached its end with finite numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackedAnswer:
    """What a run came to."""

    parameters: Mapping[str, Value]
    """The recommended ones."""
    metrics: Mapping[str, float]
    files: Mapping[str, str]
    """Where adapter, report and result are, by name."""


class Tracker(Protocol):
    """One library; imported by `begin`, and all its methods are called in one thread of their own, in this order."""

    def begin(self, run: TrackedRun) -> None:
        """Once."""

    def trial(self, trial: TrackedTrial) -> None:
        """Called as each trial ends."""

    def answer(self, answer: TrackedAnswer) -> None:
        """Once, unless the run ends without one."""

    def close(self) -> None:
        """Whatever came before."""
