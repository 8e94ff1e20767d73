"""Who looks on while a command works: nobody, or a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from loratune.app.forecast import Forecast
from loratune.app.workbench import Workbench
from loratune.engine.pack import PackProgress
from loratune.reporting.facts import RunFacts
from loratune.values import TrialResult


class Watch(Protocol):
    """Told of everything that happens; entered while trials run."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def note(self, text: str) -> None:
        """One sentence."""

    def plan(self, priced: Forecast, bench: Workbench) -> None:
        """The priced plan, before anything is trained."""

    def resumed(self, history: Sequence[TrialResult]) -> None:
        """Trials that an earlier run has finished."""

    def stage(self, name: str, trials: int = 0) -> None:
        """A stage begins, or goes on with so many more trials."""

    def progress(self, pack: PackProgress) -> None:
        """A pack has taken a step."""

    def result(self, result: TrialResult) -> None:
        """A trial has ended."""

    def summary(self, facts: RunFacts) -> None:
        """The run is complete."""


class Quiet:
    """Nobody looks on."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def note(self, text: str) -> None:
        """Nothing."""

    def plan(self, priced: Forecast, bench: Workbench) -> None:
        """Nothing."""

    def resumed(self, history: Sequence[TrialResult]) -> None:
        """Nothing."""

    def stage(self, name: str, trials: int = 0) -> None:
        """Nothing."""

    def progress(self, pack: PackProgress) -> None:
        """Nothing."""

    def result(self, result: TrialResult) -> None:
        """Nothing."""

    def summary(self, facts: RunFacts) -> None:
        """Nothing."""
