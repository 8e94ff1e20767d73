"""What the search may cost: a duration, a number of final runs, or `auto`."""

import re
from dataclasses import dataclass
from math import ceil, floor, inf, log2
from typing import Self

from loratune.errors import BudgetError

AUTO_RUNS = 5.0
AUTO_SECONDS = 60.0
"""What `auto` lets a whole command take at least on a GPU, from its start to `result.json`."""
START_SECONDS = 12.0
"""The part of it for what precedes the first step: not measured, so that one calibration always gives the same plan."""
SAFETY = 0.85
"""Share of the time left that a plan may fill: devices slow down, requests take a while to begin, and results ask for
more than is expected."""
STEPS_PER_DOUBLING = 3
"""Steps that `coarse` has between a number and its double."""
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """Either seconds for everything up to `result.json`, or final runs for the search."""

    seconds: float | None = None
    runs: float | None = None
    least_seconds: float = 0.0
    """Time that the whole command may take on a GPU, whatever `runs` are."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """`90s`, `30m`, `2h`, `1d`, `3x` or `auto`. Raises `BudgetError`."""
        if text == "auto":
            return cls(runs=AUTO_RUNS, least_seconds=AUTO_SECONDS)
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdx])", text.strip())
        if not match or not 0 < float(match[1]) < inf:
            raise BudgetError(
                f"--budget must be a duration such as 30m or 2h, a multiple of one final run such as 3x, "
                f"or auto, got {text!r}; give e.g. --budget 30m."
            )
        amount, unit = float(match[1]), match[2]
        return cls(runs=amount) if unit == "x" else cls(seconds=amount * _SECONDS[unit])

    def runs_on(self, *, alone: float, gpu: bool, others: float = 0.0) -> float | None:
        """Final runs that the search may cost where one takes `alone` seconds; None for a budget in time.

        `others`: seconds of what comes after the search.
        """
        if self.runs is None or not gpu or not alone:
            return self.runs
        left = self.least_seconds - START_SECONDS - others
        return max(self.runs, coarse(SAFETY * left / alone))


class TooSlow(Exception):
    """A first measurement is so slow that the budget cannot work, whatever the others take."""

    def __init__(self, rate: float, *, ceiling: bool = False) -> None:
        """`rate`: tokens per second, of a first step or, for a `ceiling`, those that no step can exceed."""
        super().__init__(rate)
        self.rate, self.ceiling = rate, ceiling


def in_words(seconds: float) -> str:
    """The time as `--budget` takes it, rounded up: `90s`, `12m`, `2.5h`."""
    if seconds <= 120:
        return f"{ceil(seconds)}s"
    return f"{ceil(seconds / 60)}m" if seconds <= 7200 else f"{ceil(seconds / 360) / 10:g}h"


def coarse(value: float) -> float:
    """Rounded down to one of three steps per doubling, so that a calibration's noise seldom changes a plan."""
    step = STEPS_PER_DOUBLING
    return 2.0 ** (floor(step * log2(value)) / step) if value > 0 else 0.0
