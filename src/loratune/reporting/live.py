"""Progress on stderr while trials run: a live view on a terminal, now and then a plain line elsewhere.

Is told of stages, steps and results; asks nobody and decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from loratune.reporting.pace import Pace, Part
from loratune.reporting.screen import Screen
from loratune.reporting.wording import count, duration, rate
from loratune.values import Stage, TrialResult, TrialState

if TYPE_CHECKING:
    from loratune.engine.progress import PackProgress, SlotProgress

_PLAIN_SECONDS = 30.0
"""Between two lines where stderr is no terminal."""
_SHOWN_SLOTS = 12
TEST = "test"
"""The stage after the last step: what was trained and the base model on the test rows."""


class LiveView:
    """Enter it while trials run; it can be entered once."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Screen(stderr=True)
        self._live: Live | None = None
        self._pack: PackProgress | None = None
        self._stage = ""
        self._best: TrialResult | None = None
        self._done = self._trials = self._diverged = 0
        self._pace = Pace()
        self._tokens = 0
        self._busy = 0.0
        self._started = self._last_line = monotonic()

    def __enter__(self) -> Self:
        self._started = monotonic()
        if self.console.is_terminal:
            self._live = Live(
                console=self.console, get_renderable=self.picture, refresh_per_second=4, transient=True
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def note(self, text: str) -> None:
        """One sentence, kept on the screen."""
        self.console.print(text, markup=False, highlight=False)

    def expect(
        self,
        *,
        trials: int,
        cost: float,
        seconds: float,
        final_trials: int = 0,
        final_seconds: float = 0.0,
        test_seconds: float = 0.0,
    ) -> None:
        """What is planned from now on: trials, their full-run equivalents and seconds, those of the final run included.

        `final_…`: of these the final run, a full run each; `test_seconds`: of its seconds those after the last step.
        """
        self._trials = trials
        each = (final_seconds - test_seconds) / final_trials if final_trials else 0.0
        self._pace = Pace(
            part=Part(seconds=seconds - final_seconds, cost=cost - final_trials, began=self._elapsed),
            final_trial=each,
            final_trials=final_trials,
            test_seconds=test_seconds,
        )

    def resumed(self, history: Sequence[TrialResult]) -> None:
        """Trials of the search that an earlier run has finished: they count as done, not as work of this run."""
        for result in history:
            self._count(result)
        self._pace.already(sum(result.cost for result in history))
        if history:
            self.note(f"Resumed with {len(history)} finished trials.")

    def stage(self, name: str, trials: int = 0) -> None:
        """A stage begins, or goes on with so many more trials; nothing else is left once it is the final run."""
        if name == str(Stage.FINAL):
            self._pack = None
            self._trials = self._done + trials
            self._pace.begin_final(self._elapsed, trials)
        elif name == TEST:
            self._pack = None
            self._trials = self._done
            self._pace.begin_test(self._elapsed)
        else:
            self._trials = max(self._trials, self._done + trials)
        if name != self._stage:
            self._stage = name
            left = self._left if name == TEST else ""  # nobody tells of steps there
            self.note(f"{duration(self._elapsed)}  stage: {name}{left}")

    def progress(self, pack: PackProgress) -> None:
        """A pack has taken a step."""
        self._pack = pack
        self._tokens += pack.tokens
        self._busy += pack.seconds
        if self._live is None and monotonic() - self._last_line > _PLAIN_SECONDS:
            self._plain_line()

    def result(self, result: TrialResult) -> None:
        """A trial has ended."""
        self._count(result)
        self._pace.ended(result.cost)
        if result.state is TrialState.DIVERGED:
            self.note(f"{duration(self._elapsed)}  diverged: {setting(result)} ({result.message})")

    @property
    def seconds_left(self) -> float | None:
        """Until all is done; None where nothing is known."""
        under_way = sum(s.trial.fraction * s.step / max(1, s.total_steps) for s in self._slots)
        return self._pace.left(self._elapsed, under_way)

    def picture(self) -> Group:
        """What a terminal shows now."""
        head = Text.assemble(
            (self._stage or "starting", "bold"),
            f"   {self._counts()}   {self._times()}",
        )
        bar = Table.grid()
        bar.add_row(ProgressBar(total=max(1, self._trials), completed=self._done, width=60))
        return Group(head, bar, Text(self._best_text()), self._slot_table())

    @property
    def _elapsed(self) -> float:
        return monotonic() - self._started

    @property
    def _slots(self) -> Sequence[SlotProgress]:
        return self._pack.slots if self._pack else ()

    def _count(self, result: TrialResult) -> None:
        self._done += 1
        self._diverged += result.state is TrialState.DIVERGED
        if (
            result.finished
            and result.trial.fraction == 1
            and (self._best is None or result.nll < self._best.nll)
        ):
            self._best = result

    def _counts(self) -> str:
        diverged = f" ({self._diverged} diverged)" if self._diverged else ""
        return f"{self._done}/{max(self._trials, self._done)} trials{diverged}"

    def _best_text(self) -> str:
        best = (
            f"best NLL so far {self._best.nll:.4f}: {setting(self._best)}"
            if self._best
            else "no full trial yet"
        )
        speed = f"   {count(self._tokens / self._busy)} tokens/s" if self._busy else ""
        return best + speed

    def _slot_table(self) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for heading in ("r", "learning rate", "batch", "alpha", "seed", "step", "train NLL"):
            table.add_column(heading, justify="right")
        for slot in self._slots[:_SHOWN_SLOTS]:
            values = slot.trial.hyper_parameters
            table.add_row(
                str(values.r),
                rate(values.learning_rate),
                str(values.batch_size),
                f"{values.lora_alpha:g}",
                str(slot.trial.seed),
                f"{slot.step}/{slot.total_steps}",
                f"{slot.loss:.3f}",
            )
        if len(self._slots) > _SHOWN_SLOTS:
            table.add_row(f"+{len(self._slots) - _SHOWN_SLOTS}", style="dim")
        return table

    def _plain_line(self) -> None:
        self._last_line = monotonic()
        self.note(
            f"{duration(self._elapsed)}  {self._stage}: {self._counts()}, {len(self._slots)} in the pack, "
            f"{self._best_text()}{self._left}"
        )

    def _times(self) -> str:
        return f"{duration(self._elapsed)} so far{self._left}"

    @property
    def _left(self) -> str:
        left = self.seconds_left
        return "" if left is None else f", about {duration(left)} left"


def setting(result: TrialResult) -> str:
    """`r 8, learning rate 1e-3, batch 16, alpha 16`."""
    values = result.trial.hyper_parameters
    return (
        f"r {values.r}, learning rate {rate(values.learning_rate)}, batch {values.batch_size}, "
        f"alpha {values.lora_alpha:g}"
    )
