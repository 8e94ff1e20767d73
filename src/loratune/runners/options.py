"""What a runner needs once for all its jobs, wherever it runs them: one frozen value."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from loratune.engine.memory import Shortage, ignore
from loratune.runners.finalists import Finalists
from loratune.runners.largest import LargestAdapter
from loratune.runners.queue import Plans
from loratune.values import TrialResult
from loratune.values.events import Tell, discard


def never() -> bool:
    """No stop is requested."""
    return False


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RunnerOptions:
    """What a kind of job does not need may be left out."""

    planner: Plans | None = None
    """Packs the trials of the search, and shares them out over devices."""
    folder: Path | None = None
    """Where the final run keeps its adapters, one folder per trial's key; None: as the workers' specification says."""
    largest: LargestAdapter | None = None
    """Where the best adapter of the largest rank of the search is kept; None: nowhere."""
    finalists: Finalists | None = None
    """Where the adapters are kept that may be compared by what they write; None: nowhere."""
    tell: Tell = discard
    """Called with how far packs are."""
    on_shortage: Callable[[Shortage], None] = ignore
    """Called with every out-of-memory error that was recovered from."""
    deadline: float | None = None
    """`time.monotonic()` after which no trial is begun and running ones stop at their next reading."""
    stopped: Callable[[], bool] = never
    """Whether somebody has asked for the same before."""

    @property
    def late(self) -> bool:
        """Whether no trial is to be begun any more."""
        return (self.deadline is not None and monotonic() >= self.deadline) or self.stopped()

    def take(self, result: TrialResult, adapter: Path | None) -> Path | None:
        """Where the adapter of a trial is kept that a worker has put down; None where it is not."""
        if adapter is None or self.largest is None:
            return None
        if self.finalists is not None:
            self.finalists.copy(result, adapter)
        return self.largest.take(result, adapter)


DEFAULT = RunnerOptions()
