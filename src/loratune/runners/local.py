"""Packs in this process. Knows the engine and the study; decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

from loratune.engine.pack import PackEngine
from loratune.lora.layout import Adapter
from loratune.runners.kept import LargestAdapter
from loratune.runners.queue import More, Plans, TrialQueue
from loratune.runners.telling import PackTeller
from loratune.values import CurvePoint, Trial, TrialResult, TrialState
from loratune.values.events import Tell, TrialEnded, nobody

if TYPE_CHECKING:  # only named here: importing it imports Optuna
    from loratune.study.record import Study


@dataclass(frozen=True, kw_only=True, eq=False)
class LocalRunner:
    """Trains what a strategy asks for as the plan packs it, and records each trial the moment it ends."""

    engine: PackEngine
    study: Study
    planner: Plans
    tell: Tell = nobody
    largest: LargestAdapter | None = None
    """Where the best adapter of the largest rank is kept; None: nowhere."""
    deadline: float | None = None
    """`time.monotonic()` after which no trial is begun and running ones stop at their next reading."""

    @property
    def late(self) -> bool:
        return self.deadline is not None and monotonic() >= self.deadline

    def run(self, trials: Sequence[Trial], more: More | None = None) -> list[TrialResult]:
        """Results in the order in which they ended.

        `more` is asked for further trials when a slot is free and none waits.
        """
        queue, teller = TrialQueue(self.planner, trials, more), PackTeller(self.tell)

        def next_trial() -> Trial | None:
            return None if self.late else queue.next()

        def keep(result: TrialResult, adapter: Adapter) -> None:
            # only the clock stops trials here: --resume is to train them
            stopped = result.state is TrialState.STOPPED
            queue.ended(result.asked, None if stopped else result)
            if stopped:
                return
            if self.largest is not None:
                self.largest.offer(result, adapter)
            self.study.record(result)
            self.tell(TrialEnded.of(result))

        def should_stop(trial: Trial, curve: tuple[CurvePoint, ...]) -> bool:
            return self.late

        self.engine.run(
            next_trial,
            slots=queue.slots,
            on_result=keep,
            on_progress=teller,
            should_stop=should_stop,
        )
        teller.flush()
        return queue.results
