"""Progress on stderr while a command works: a live view on a terminal, now and then a plain line elsewhere.

A subscriber of events: it asks for nothing and decides nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from time import monotonic
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from loratune.reporting.progress import RunProgress
from loratune.reporting.screen import Screen
from loratune.reporting.wording import count, duration, money, rate, variant
from loratune.values import Trial, TrialState
from loratune.values.events import (
    Event,
    Finished,
    Note,
    Phase,
    PhaseBegan,
    Progress,
    Resumed,
    StageBegan,
    TrialEnded,
)

_PLAIN_SECONDS = 30.0
"""Time between two lines where stderr is no terminal."""
_SHOWN_SLOTS = 12
_OTHER_LINES = 7
"""Head (two lines where it is long), bar, two tables' heads, how many slots are not shown, the cursor's line."""


class LiveView:
    """Call it with every event; enter it before the first one, once, and leave it after the last."""

    def __init__(self, console: Console | None = None, *, plain: bool = False) -> None:
        """`plain`: lines also on a terminal, where others print while it works."""
        # a file of its own: third-party noise is silenced by exchanging sys.stderr for moments
        self.console = console or Screen(file=sys.stderr)
        self._live: Live | None = None
        self._plain = plain or not self.console.is_terminal
        self._run = RunProgress(lambda: monotonic() - self._started)
        self._started = self._last_line = monotonic()
        self._turn = RLock()
        self._over = False

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
        """Show a new view each time: one already shown wipes the lines it had, though others may have written since."""
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

    @property
    def plain(self) -> bool:
        """Whether it writes lines, not a view that moves."""
        return self._plain

    def beat(self) -> None:
        """A line where there was none for as long as there should be one; call it now and then, from any thread."""
        with self._turn:
            if self._plain and not self._over and monotonic() - self._last_line > _PLAIN_SECONDS:
                self._plain_line()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        with self._turn:
            self._show_event(event)

    def _show_event(self, event: Event) -> None:
        before = self._run.stage
        self._run(event)
        match event:
            case Note(text=text):
                self._say(text)
            case PhaseBegan(phase=phase) if phase not in (Phase.SEARCHING, Phase.FINAL_RUN):
                left = self._left if phase is Phase.TESTING else ""  # there are no events of steps there
                self._say(f"{duration(self._run.elapsed)}  {phase}{left}")
            case Resumed(trials=trials) if trials:
                self._say(f"Resumed with {len(trials)} finished trials.")
            case StageBegan(name=name) if name != before:
                self._say(f"{duration(self._run.elapsed)}  stage: {name}")
            case Progress():
                self.beat()
            case Finished():
                self._over = True
            case TrialEnded(state=TrialState.DIVERGED):
                failed = f"{setting(event.trial)} ({event.message})"
                self._say(f"{duration(self._run.elapsed)}  diverged: {failed}")
            case _:
                pass

    def _say(self, text: str) -> None:
        """One sentence, kept on the screen."""
        self._last_line = monotonic()
        self.console.print(text, markup=False, highlight=False)

    @property
    def seconds_left(self) -> float | None:
        """Seconds until all is done; None where nothing is known."""
        return self._run.seconds_left

    def picture(self) -> Group:
        """What a terminal shows now."""
        head = Text.assemble(
            (self._run.stage or "starting", "bold"),
            f"   {self._counts()}   {self._times()}{self._speed}",
        )
        if not self._run.trials:
            return Group(head)
        bar = Table.grid(expand=True)
        bar.add_row(ProgressBar(total=max(1, self._run.trials), completed=self._run.done))
        leaders = self._run.leaders.table() if len(self._run.leaders) else Text("no full trial yet")
        free = self.console.height - len(self._run.leaders) - _OTHER_LINES
        return Group(head, bar, leaders, self._slot_table(max(1, min(_SHOWN_SLOTS, free))))

    def _counts(self) -> str:
        if not self._run.trials:
            return ""
        diverged = f" ({self._run.diverged} diverged)" if self._run.diverged else ""
        return f"{self._run.done}/{max(self._run.trials, self._run.done)} trials{diverged}"

    def _best_text(self) -> str:
        best = self._run.leaders.best
        return f"best NLL so far {best.nll:.4f}: {setting(best.trial)}" if best else "no full trial yet"

    @property
    def _speed(self) -> str:
        speed = self._run.tokens_per_second
        return f"   {count(speed)} tokens/s" if speed else ""

    def _slot_table(self, most: int) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for heading in ("r", "learning rate", "batch", "alpha", "seed", "step", "train NLL"):
            table.add_column(heading, justify="right")
        for slot in self._run.slots[:most]:
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
        if len(self._run.slots) > most:
            table.add_row(f"+{len(self._run.slots) - most}", style="dim")
        return table

    def _plain_line(self) -> None:
        if self._run.pack is None:  # nothing trains
            self._say(f"{duration(self._run.elapsed)}  still {self._run.stage or 'starting'}{self._left}")
            return
        self._say(
            f"{duration(self._run.elapsed)}  {self._run.stage}: {self._counts()}, {len(self._run.slots)} in the pack, "
            f"{self._best_text()}{self._speed}{self._left}"
        )

    def _times(self) -> str:
        spent = money(self._run.elapsed, self._run.price_per_hour)
        return f"{duration(self._run.elapsed)} so far{f' ({spent})' if spent else ''}{self._left}"

    @property
    def _left(self) -> str:
        left = self.seconds_left
        if left is None:
            return ""
        price = money(left, self._run.price_per_hour)
        return f", about {duration(left)} left{f' ({price})' if price else ''}"


def setting(trial: Trial) -> str:
    """`r 8, learning rate 1e-3, batch 16, alpha 16`."""
    values = trial.hyper_parameters
    return (
        f"r {values.r}, learning rate {rate(values.learning_rate)}, batch {values.batch_size}, "
        f"alpha {values.lora_alpha:g}{variant(values)}"
    )
