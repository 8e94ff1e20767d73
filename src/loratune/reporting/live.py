"""Progress on stderr while a command works: a live view on a terminal, now and then a plain line elsewhere.

A subscriber of events; asks nobody and decides nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from loratune.reporting.leaderboard import Leaderboard
from loratune.reporting.pace import Pace, Part
from loratune.reporting.screen import Screen
from loratune.reporting.wording import count, duration, rate
from loratune.values import Stage, Trial, TrialState
from loratune.values.events import (
    Event,
    Finished,
    LiveTrial,
    Note,
    Phase,
    PhaseBegan,
    Planned,
    Progress,
    Resumed,
    StageBegan,
    TrialEnded,
)

_PLAIN_SECONDS = 30.0
"""Between two lines where stderr is no terminal."""
_SHOWN_SLOTS = 12
_OTHER_LINES = 7
"""Head (two lines where it is long), bar, two tables' heads, how many slots are not shown, the cursor's line."""
_TRAINING = (Phase.SEARCHING, Phase.FINAL_RUN)
"""Phases of which the stages are told, not the phase."""


class LiveView:
    """Call it with every event; enter it before the first one, once, and leave it after the last."""

    def __init__(self, console: Console | None = None, *, plain: bool = False) -> None:
        """`plain`: lines also on a terminal, where others print while it works."""
        # a file of its own: third-party noise is silenced by exchanging sys.stderr for moments
        self.console = console or Screen(file=sys.stderr)
        self._live: Live | None = None
        self._plain = plain or not self.console.is_terminal
        self._pack: Progress | None = None
        self._stage = ""
        self._leaders = Leaderboard()
        self._done = self._trials = self._diverged = 0
        self._pace = Pace()
        self._tokens = 0
        self._busy = 0.0
        self._started = self._last_line = monotonic()

    def __enter__(self) -> Self:
        self._started = monotonic()
        self._show()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hide()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The view is off the screen, so that others may print on it."""
        shown = self._live is not None
        self._hide()
        try:
            yield
        finally:
            if shown:
                self._show()

    def _show(self) -> None:
        """A new view each time: one that has been shown wipes as many lines as it had, whoever's they are now."""
        if self._plain:
            return
        self._live = Live(
            console=self.console,
            get_renderable=self.picture,
            refresh_per_second=4,
            transient=True,
            # what others print meanwhile is put above the view, which would wipe it
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=True,
        )
        if isinstance(self.console, Screen):
            # else a print and a refresh could each count on the lines that the other is about to write
            self._live._lock = self.console.gate
        self._live.start()

    def _hide(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case Note(text=text):
                self._say(text)
            case PhaseBegan(phase=phase):
                self._phase(phase)
            case Planned():
                self._expect(event)
            case Resumed(trials=trials):
                self._resumed(trials)
            case StageBegan(name=name, trials=trials):
                self._begin_stage(name, trials)
            case Progress():
                self._progress(event)
            case TrialEnded():
                self._ended(event)
            case Finished():
                self._stage = ""
            case _:
                pass

    def _say(self, text: str) -> None:
        """One sentence, kept on the screen."""
        self.console.print(text, markup=False, highlight=False)

    def _phase(self, phase: Phase) -> None:
        self._pack = None
        if phase is Phase.TESTING:
            self._trials = self._done
            self._pace.begin_test(self._elapsed)
        if phase in _TRAINING:
            return
        self._stage = str(phase)
        left = self._left if phase is Phase.TESTING else ""  # nobody tells of steps there
        self._say(f"{duration(self._elapsed)}  {phase}{left}")

    def _expect(self, planned: Planned) -> None:
        """From now on so many trials, full-run equivalents and seconds, those of the final run included."""
        final = planned.final_trials
        self._trials = planned.plan.trials + final
        each = (planned.final_run_seconds - planned.test_seconds) / final if final else 0.0
        seconds = planned.search_seconds + planned.final_seconds - planned.final_run_seconds
        self._pace = Pace(
            part=Part(seconds=seconds, cost=planned.plan.cost, began=self._elapsed),
            final_trial=each,
            final_trials=final,
            test_seconds=planned.test_seconds,
        )

    def _resumed(self, trials: Sequence[TrialEnded]) -> None:
        """They count as done, not as work of this run."""
        for trial in trials:
            self._count(trial)
        self._pace.already(sum(trial.cost for trial in trials))
        if trials:
            self._say(f"Resumed with {len(trials)} finished trials.")

    def _begin_stage(self, name: str, trials: int) -> None:
        """Nothing else is left to be trained once it is the final run."""
        if name == str(Stage.FINAL):
            self._pack = None
            self._trials = self._done + trials
            self._pace.begin_final(self._elapsed, trials)
        else:
            self._trials = max(self._trials, self._done + trials)
        if name != self._stage:
            self._stage = name
            self._say(f"{duration(self._elapsed)}  stage: {name}")

    def _progress(self, pack: Progress) -> None:
        self._pack = pack
        self._tokens += pack.tokens
        self._busy += pack.seconds
        if self._live is None and monotonic() - self._last_line > _PLAIN_SECONDS:
            self._plain_line()

    def _ended(self, trial: TrialEnded) -> None:
        self._count(trial)
        self._pace.ended(trial.cost)
        if trial.state is TrialState.DIVERGED:
            self._say(f"{duration(self._elapsed)}  diverged: {setting(trial.trial)} ({trial.message})")

    @property
    def seconds_left(self) -> float | None:
        """Until all is done; None where nothing is known."""
        under_way = sum(slot.trial.fraction * slot.share for slot in self._slots)
        return self._pace.left(self._elapsed, under_way)

    def picture(self) -> Group:
        """What a terminal shows now."""
        head = Text.assemble(
            (self._stage or "starting", "bold"),
            f"   {self._counts()}   {self._times()}{self._speed}",
        )
        if not self._trials:
            return Group(head)
        bar = Table.grid(expand=True)
        bar.add_row(ProgressBar(total=max(1, self._trials), completed=self._done))
        leaders = self._leaders.table() if len(self._leaders) else Text("no full trial yet")
        free = self.console.height - len(self._leaders) - _OTHER_LINES
        return Group(head, bar, leaders, self._slot_table(max(1, min(_SHOWN_SLOTS, free))))

    @property
    def _elapsed(self) -> float:
        return monotonic() - self._started

    @property
    def _slots(self) -> Sequence[LiveTrial]:
        return self._pack.trials if self._pack else ()

    def _count(self, ended: TrialEnded) -> None:
        self._done += 1
        self._diverged += ended.state is TrialState.DIVERGED
        self._leaders.add(ended)

    def _counts(self) -> str:
        if not self._trials:
            return ""
        diverged = f" ({self._diverged} diverged)" if self._diverged else ""
        return f"{self._done}/{max(self._trials, self._done)} trials{diverged}"

    def _best_text(self) -> str:
        best = self._leaders.best
        return f"best NLL so far {best.nll:.4f}: {setting(best.trial)}" if best else "no full trial yet"

    @property
    def _speed(self) -> str:
        return f"   {count(self._tokens / self._busy)} tokens/s" if self._busy else ""

    def _slot_table(self, most: int) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for heading in ("r", "learning rate", "batch", "alpha", "seed", "step", "train NLL"):
            table.add_column(heading, justify="right")
        for slot in self._slots[:most]:
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
        if len(self._slots) > most:
            table.add_row(f"+{len(self._slots) - most}", style="dim")
        return table

    def _plain_line(self) -> None:
        self._last_line = monotonic()
        self._say(
            f"{duration(self._elapsed)}  {self._stage}: {self._counts()}, {len(self._slots)} in the pack, "
            f"{self._best_text()}{self._speed}{self._left}"
        )

    def _times(self) -> str:
        return f"{duration(self._elapsed)} so far{self._left}"

    @property
    def _left(self) -> str:
        left = self.seconds_left
        return "" if left is None else f", about {duration(left)} left"


def setting(trial: Trial) -> str:
    """`r 8, learning rate 1e-3, batch 16, alpha 16`."""
    values = trial.hyper_parameters
    return (
        f"r {values.r}, learning rate {rate(values.learning_rate)}, batch {values.batch_size}, "
        f"alpha {values.lora_alpha:g}"
    )
