"""From the steps of a pack to events: a few a second, each for the steps since the one before."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from loratune.engine.progress import PackProgress
from loratune.values.events import LiveTrial, Progress, Tell

SECONDS = 0.25
"""Between two events, at least."""


class PackTeller:
    """For the engine's `on_progress`; `flush` when the pack has ended."""

    def __init__(self, tell: Tell, *, clock: Callable[[], float] = monotonic) -> None:
        self._tell = tell
        self._clock = clock
        self._last = -SECONDS
        self._latest: PackProgress | None = None
        self._steps = self._tokens = 0
        self._seconds = self._occupied = 0.0

    def __call__(self, pack: PackProgress) -> None:
        """A step has been taken."""
        self._latest = pack
        self._steps += 1
        self._tokens += pack.tokens
        self._seconds += pack.seconds
        self._occupied += pack.seconds * len(pack.slots)
        if self._clock() - self._last >= SECONDS:
            self.flush()

    def flush(self) -> None:
        """Tell of the steps that nobody was told of."""
        if self._latest is None:
            return
        trials = tuple(
            LiveTrial(trial=slot.trial, step=slot.step, total_steps=slot.total_steps, loss=slot.loss)
            for slot in self._latest.slots
        )
        occupancy = self._occupied / self._seconds if self._seconds else float(len(trials))
        event = Progress(
            trials=trials,
            steps=self._steps,
            tokens=self._tokens,
            seconds=self._seconds,
            occupancy=occupancy,
        )
        self._last = self._clock()
        self._latest, self._steps, self._tokens, self._seconds, self._occupied = None, 0, 0, 0.0, 0.0
        self._tell(event)
