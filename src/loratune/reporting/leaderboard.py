"""The best finished trials of a search, as a table that stays in sight while it goes on."""

from __future__ import annotations

from rich.table import Table

from loratune.reporting.wording import rate
from loratune.values.events import TrialEnded

PLACES = 5


class Leaderboard:
    """Trials on all rows by their validation NLL, each under its own seed; those on part of the rows do not compare."""

    def __init__(self, places: int = PLACES) -> None:
        self._places = places
        self._trials: list[TrialEnded] = []

    def add(self, ended: TrialEnded) -> None:
        """Take it in where it belongs; what diverged or saw part of the rows is passed over."""
        if ended.finished and ended.trial.fraction == 1:
            self._trials = sorted([*self._trials, ended], key=lambda each: each.nll)[: self._places]

    @property
    def best(self) -> TrialEnded | None:
        """None until a trial on all rows has finished."""
        return self._trials[0] if self._trials else None

    @property
    def trials(self) -> tuple[TrialEnded, ...]:
        """The best first."""
        return tuple(self._trials)

    def __len__(self) -> int:
        return len(self._trials)

    def table(self) -> Table:
        """A row for each trial, the best first."""
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for heading in ("best so far", "r", "learning rate", "batch", "alpha", "epochs", "seed", "NLL"):
            table.add_column(heading, justify="right")
        for place, each in enumerate(self._trials, 1):
            values = each.trial.hyper_parameters
            table.add_row(
                str(place),
                str(values.r),
                rate(values.learning_rate),
                str(values.batch_size),
                f"{values.lora_alpha:g}",
                f"{values.epochs:g}",
                str(each.trial.seed),
                f"{each.nll:.4f}",
                style="bold" if place == 1 else "",
            )
        return table
