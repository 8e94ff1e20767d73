"""Packs in this process. Knows the engine and the study; decides nothing."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic

from loratune.engine.pack import PackEngine, PackProgress
from loratune.lora.layout import Adapter
from loratune.maths.packing import plan_pack
from loratune.run.kept import LargestAdapter
from loratune.study import Study
from loratune.values import CurvePoint, Trial, TrialResult, TrialState


@dataclass(frozen=True, kw_only=True, eq=False)
class LocalRunner:
    """Trains what a strategy asks for, at most `slots` trials at once, and records each the moment it ends."""

    engine: PackEngine
    study: Study
    slots: int
    on_progress: Callable[[PackProgress], None]
    on_result: Callable[[TrialResult], None]
    largest: LargestAdapter | None = None
    """Where the best adapter of the largest rank is kept; None: nowhere."""
    deadline: float | None = None
    """`time.monotonic()` after which no trial is begun and running ones stop at their next reading."""

    @property
    def late(self) -> bool:
        return self.deadline is not None and monotonic() >= self.deadline

    def run(self, trials: Sequence[Trial]) -> list[TrialResult]:
        """Results in the order in which they ended; longest trials first, so that packs end together."""
        order = plan_pack([self.engine.cost(trial) for trial in trials], self.slots).order
        waiting = deque(trials[i] for i in order)
        results: list[TrialResult] = []

        def next_trial() -> Trial | None:
            return waiting.popleft() if waiting and not self.late else None

        def keep(result: TrialResult, adapter: Adapter) -> None:
            if result.state is TrialState.STOPPED:
                return  # only the clock stops trials here: --resume is to train it
            if self.largest is not None:
                self.largest.offer(result, adapter)
            self.study.record(result)
            results.append(result)
            self.on_result(result)

        def should_stop(trial: Trial, curve: tuple[CurvePoint, ...]) -> bool:
            return self.late

        self.engine.run(
            next_trial,
            slots=self.slots,
            on_result=keep,
            on_progress=self.on_progress,
            should_stop=should_stop,
        )
        return results
