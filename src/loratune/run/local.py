"""Packs in this process. Knows the engine and the study; decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

from loratune.engine.pack import PackEngine
from loratune.engine.progress import PackProgress
from loratune.lora.layout import Adapter
from loratune.maths.packing import Admission
from loratune.run.kept import LargestAdapter
from loratune.run.lessons import LearningPlanner
from loratune.run.planning import Planner
from loratune.values import CurvePoint, Trial, TrialResult, TrialState

if TYPE_CHECKING:  # only named here: importing it imports Optuna
    from loratune.study import Study

More = Callable[[Sequence[TrialResult], Sequence[Trial]], Sequence[Trial]]
"""From the results of this run so far and the trials still running to further trials."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LocalRunner:
    """Trains what a strategy asks for as the plan packs it, and records each trial the moment it ends."""

    engine: PackEngine
    study: Study
    planner: Planner | LearningPlanner
    on_progress: Callable[[PackProgress], None]
    on_result: Callable[[TrialResult], None]
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
        plan = self.planner.plan(trials)
        memory = [self.planner.load(trial).memory for trial in trials]
        admission = Admission(memory, plan.order, slots=plan.slots, room=plan.memory)
        asked = list(trials)
        number = {trial.key: i for i, trial in enumerate(asked)}
        running: dict[str, Trial] = {}
        results: list[TrialResult] = []

        def next_trial() -> Trial | None:
            if self.late:
                return None
            if more is not None and admission.empty and running:
                further = more(results, tuple(running.values()))
                memory = [self.planner.load(trial).memory for trial in further]
                everybody = [trial.hyper_parameters for trial in (*asked, *further)]
                admission.add(memory, room=self.planner.room(everybody))
                number.update({trial.key: len(asked) + i for i, trial in enumerate(further)})
                asked.extend(further)
            chosen = admission.next()
            if chosen is None:
                return None
            running[asked[chosen].key] = asked[chosen]
            return asked[chosen]

        def keep(result: TrialResult, adapter: Adapter) -> None:
            admission.ended(number[result.asked.key])
            del running[result.asked.key]
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
            slots=plan.slots,
            on_result=keep,
            on_progress=self.on_progress,
            should_stop=should_stop,
        )
        return results
