"""Who looks on while a command works: nobody, or a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from loratune.engine.progress import PackProgress
from loratune.reporting.facts import RunFacts
from loratune.reporting.live import LiveView
from loratune.reporting.screen import Screen
from loratune.reporting.terminal import print_plan, print_profile, print_summary
from loratune.tuning.forecast import Forecast
from loratune.tuning.workbench import Workbench
from loratune.values import TrialResult

_FINAL_TRIALS = 2
"""The recommended one and the default recipe."""


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


class Terminal(LiveView):
    """Progress on stderr; plan and summary on stdout, unless stdout is for a JSON document."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._out = None if as_json else Screen()

    def plan(self, priced: Forecast, bench: Workbench) -> None:
        """Profile and plan; from it the expected number of trials, cost and time."""
        plan = priced.plan
        self.expect(
            trials=plan.trials + _FINAL_TRIALS,
            cost=plan.cost + _FINAL_TRIALS,
            seconds=priced.search_seconds + priced.final_seconds,
            final_trials=_FINAL_TRIALS,
            final_seconds=priced.final_run_seconds,
            test_seconds=priced.test_seconds,
        )
        if self._out is None:
            for note in bench.notes:
                self.note(note)
            return
        print_profile(self._out, bench.data.profile, bench.base.profile)
        for note in bench.notes:
            self._out.print(f"– {note}", markup=False, highlight=False)
        self._out.print()
        print_plan(
            self._out,
            plan,
            final_seconds=priced.final_seconds,
            slots=priced.slots,
            peak_bytes=priced.peak_bytes,
            memory_bytes=bench.limits.device_bytes,
        )
        for note in priced.notes:
            self._out.print(f"– {note}", markup=False, highlight=False)

    def summary(self, facts: RunFacts) -> None:
        """The answer on one screen."""
        if self._out is not None:
            self._out.print()
            print_summary(self._out, facts)
