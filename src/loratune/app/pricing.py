"""What the stages of a plan take, and how many full runs a budget in time buys."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

from loratune.app.options import SearchOptions
from loratune.app.workbench import Workbench
from loratune.errors import ResourceError
from loratune.maths.packing import PackPlan
from loratune.run.budget import coarse
from loratune.run.calibration import Calibration
from loratune.run.planning import Planner
from loratune.run.rehearsal import Rehearsal, rehearse
from loratune.search.make import make_strategy
from loratune.search.space import candidate_ranks
from loratune.search.strategy import Strategy
from loratune.values import HyperParameters, PlannedStage, SearchContext, SearchPlan, Stage

_MOST_REDUCTIONS = 3
"""Of the full runs that a budget in time allows, each by what the search would take."""
_FEWEST_RUNS = 1.0


@dataclass(kw_only=True)
class Pricing:
    """Prices stages one after the other and keeps their packs."""

    strategy: Strategy
    plan: SearchPlan
    planner: Planner
    calibration: Calibration
    options: SearchOptions
    largest: HyperParameters
    packs: list[PackPlan] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    """Predicted bytes of each."""

    @classmethod
    def of(
        cls, bench: Workbench, options: SearchOptions, calibration: Calibration, context: SearchContext
    ) -> Self:
        """The options' strategy on this context. Raises `ResourceError` where its largest rank does not fit alone."""
        strategy = make_strategy(options.strategy, context)
        plan = strategy.plan()
        largest = _largest(options, context, plan)
        needed, there = bench.limits.estimate([largest]).total, bench.limits.device_bytes
        if needed > there:
            raise ResourceError(
                f"One trial of rank {largest.r} needs {needed / 2**30:.1f} GiB and {there / 2**30:.1f} GiB are "
                "there; lower --ranks or --max-length."
            )
        planner = Planner(
            limits=bench.limits,
            times=calibration.times,
            rows=len(bench.data.train),
            tokens=int(bench.data.train.lengths.sum()),
            slots=calibration.slots,
        )
        return cls(
            strategy=strategy,
            plan=plan,
            planner=planner,
            calibration=calibration,
            options=options,
            largest=largest,
        )

    def with_budget(self, runs: float) -> Self:
        """The same for so many full-run equivalents."""
        strategy = make_strategy(self.options.strategy, replace(self.context, budget=runs))
        return replace(self, strategy=strategy, plan=strategy.plan(), packs=[], peaks=[])

    def within(self, seconds: float) -> Self:
        """With fewer full runs where the search would take longer than this, as far as that shortens it.

        Packs are often far from full: where launches are all that counts, time goes with the waves, not with the runs.
        """
        best = found = self
        for _ in range(_MOST_REDUCTIONS):
            if best.expected_seconds <= seconds:
                break
            spent = sum(found.rehearsal.runs.values())
            found = found.with_budget(max(coarse(spent * seconds / found.expected_seconds), _FEWEST_RUNS))
            if found.expected_seconds < best.expected_seconds:
                best = found
        return best

    @property
    def context(self) -> SearchContext:
        return self.strategy.context

    @cached_property
    def rehearsal(self) -> Rehearsal:
        """The search with the results that the laws expect."""
        return rehearse(self.strategy, self.planner)

    @property
    def expected_seconds(self) -> float:
        """Of the whole search, runs that the plan leaves to what results say included."""
        return self._seconds(
            sum(self.rehearsal.runs.values()), self.rehearsal.trials, sum(self.rehearsal.seconds.values())
        )

    def stage(self, stage: PlannedStage) -> PlannedStage:
        """The stage with packs and seconds.

        What the packs need of memory is counted as if all its trials could train beside each other, those that hang
        on earlier results as equal ones of the default recipe at the largest rank. Its seconds are the rehearsal's.
        """
        trials = [trial.hyper_parameters for trial in stage.examples]
        if len(trials) == stage.trials:
            loads = [self.planner.load(trial) for trial in stage.examples]
        else:
            trained = self.calibration.trained_tokens(self.context, stage.cost, stage.trials)
            trials = [self.largest] * stage.trials
            loads = self.planner.equal_loads(stage.trials, trained, self.largest)
        if not loads:
            return stage
        pack = self.planner.plan_loads(loads, self.planner.room(trials))
        self.packs.append(pack)
        self.peaks.append(self.planner.peak_bytes(trials, pack))
        training = self.rehearsal.seconds_for(Stage(stage.name), stage.cost)
        return replace(
            stage,
            packs=-(-stage.trials // pack.widest),
            seconds=self._seconds(stage.cost, stage.trials, pack.seconds if training is None else training),
        )

    def _seconds(self, runs: float, trials: int, training: float) -> float:
        return self.calibration.search_seconds(self.context, runs, trials, training=training)


def _largest(options: SearchOptions, context: SearchContext, plan: SearchPlan) -> HyperParameters:
    """The default recipe at the largest rank that the search may train."""
    planned = [trial.hyper_parameters.r for stage in plan.stages for trial in stage.examples]
    return replace(options.hyper_parameters(), r=max(*candidate_ranks(context), *planned, 1))
