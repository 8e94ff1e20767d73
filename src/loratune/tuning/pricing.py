"""What the stages of a plan take, and how many full runs a budget in time buys."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from math import ceil, floor, log2
from typing import Self

from loratune.costs.budget import STEPS_PER_DOUBLING, coarse
from loratune.costs.calibration import Calibration
from loratune.costs.planner import LivePack, Planner
from loratune.errors import BudgetError
from loratune.search.make import make_strategy
from loratune.search.space import candidate_ranks
from loratune.search.strategy import Strategy
from loratune.tuning.driver import Rehearsal, rehearse
from loratune.tuning.options import SearchOptions
from loratune.tuning.workbench import Workbench
from loratune.values import HyperParameters, PlannedStage, SearchContext, SearchPlan, Stage

_FAIR = 0.5
"""Fewest runs that are planned for a time, as a share of those that would end within it if they were cut there."""


@dataclass(kw_only=True)
class Pricing:
    """Prices stages one after the other and keeps their packs."""

    strategy: Strategy
    plan: SearchPlan
    planner: Planner
    calibration: Calibration
    options: SearchOptions
    largest: HyperParameters
    widest: int = 1
    """Trials side by side, at most, in the stages priced."""
    packs: list[LivePack] = field(default_factory=list)
    """Packs of these stages."""

    @classmethod
    def of(
        cls, bench: Workbench, options: SearchOptions, calibration: Calibration, context: SearchContext
    ) -> Self:
        """The options' strategy on this context. Raises `ResourceError` where its largest rank does not fit alone."""
        strategy = make_strategy(options.strategy, context)
        plan = strategy.plan()
        largest = _largest(options, context, plan)
        bench.limits.check_alone(largest, "--ranks or --max-length")
        lengths = bench.data.train.example_lengths
        planner = Planner(
            limits=bench.limits,
            times=calibration.times,
            rows=len(lengths),
            tokens=int(lengths.sum()),
            spread=float(lengths.std() / lengths.mean()),
            slots=calibration.slots,
            dora=calibration.dora or 1.0,
            devices=bench.facts.devices,
            beyond=bench.facts.beyond,
            evaluated_tokens=calibration.evaluated_tokens(
                max(int(table.lengths.sum()) for table in (bench.data.validation, bench.data.test))
            ),
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
        """The same for `runs` full-run equivalents."""
        strategy = make_strategy(self.options.strategy, self.context.changed(budget=runs))
        return replace(self, strategy=strategy, plan=strategy.plan(), widest=1, packs=[])

    def within(self, seconds: float) -> Self:
        """With the most full runs that take no longer than this, in steps of `coarse`; as it is where none is worth it.

        Packs are often far from full: where launches are all that counts, time goes with the waves, not with the runs.
        Fewer than half of the runs that the clock would let through are not worth a search that ends in time.
        """
        expected = self.expected_seconds
        if expected <= seconds:
            return self
        most = coarse(self._expected_runs if self.context.costs.pace is None else self.context.wishes.budget)
        best, low, high = self, -1, floor(STEPS_PER_DOUBLING * log2(expected / (_FAIR * seconds))) + 1
        while high - low > 1:
            down = (low + high) // 2
            found = self._fitting(most * 2 ** (-down / STEPS_PER_DOUBLING), seconds)
            if found is None:
                low = down
            else:
                best, high = found, down
        return best

    def _fitting(self, runs: float, seconds: float) -> Self | None:
        """The same for `runs` full runs; None where they take longer or pay for no trial."""
        try:
            found = self.with_budget(runs)
        except BudgetError:
            return None
        return found if found.expected_seconds <= seconds else None

    @property
    def context(self) -> SearchContext:
        return self.strategy.context

    @cached_property
    def rehearsal(self) -> Rehearsal:
        """The search with the results that the laws expect."""
        return rehearse(self.strategy, self.planner)

    @property
    def expected_seconds(self) -> float:
        """Seconds of the whole search, runs that the plan leaves to what results say included."""
        stages = self.rehearsal.values()
        return self._seconds(
            self._expected_runs,
            sum(stage.trials for stage in stages),
            sum(stage.seconds for stage in stages),
        )

    @property
    def _expected_runs(self) -> float:
        return sum(stage.runs for stage in self.rehearsal.values())

    def stage(self, stage: PlannedStage) -> PlannedStage:
        """The stage with packs and seconds, both the rehearsal's where it came; with more runs where it had more.

        Trials that depend on earlier results count as equal ones of the default recipe at the largest rank.
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
        came = self.rehearsal.get(Stage(stage.name))
        runs, count, training, widest = stage.cost, stage.trials, pack.seconds, pack.widest
        packs = ceil(count / widest)
        if came is not None:
            widest = came.widest
            if self.context.costs.pace is None:
                runs, count = max(runs, came.runs), max(count, came.trials)
                training = came.seconds * runs / came.runs
            else:  # the stage's cost is in seconds of a run alone, what came in full-run equivalents
                runs, count, training = came.runs, came.trials, came.seconds
            packs = ceil(came.trials / widest)
            self.packs += came.packs
        else:
            most = sorted(trials, key=self.planner.limits.adapter_bytes)[-widest:]
            self.packs.append(LivePack(tuple(most), pack.tokens))
        self.widest = max(self.widest, widest)
        if came is None and self.context.costs.pace is not None:
            alone = stage.cost * self.context.seconds_alone
            return replace(stage, packs=packs, seconds=alone / self.planner.devices)
        return replace(stage, packs=packs, seconds=self._seconds(runs, count, training))

    @property
    def peak_bytes(self) -> int:
        """Predicted for the stages priced, and for the final run."""
        return self.planner.peak_bytes([*self.packs, self.final_pack])

    @property
    def final_pack(self) -> LivePack:
        """The largest recipe, beside the default one where both fit."""
        batches = [trial.batch_size for pack in self.packs for trial in pack.trials]
        chosen = replace(self.largest, batch_size=max(batches, default=self.largest.batch_size))
        recipe = self.options.hyper_parameters(epochs=self.context.wishes.epochs)
        limits, pair = self.planner.limits, (chosen, recipe)
        trials = pair if limits.fits(pair) else pair[:1]
        tokens = sum(trial.batch_size for trial in trials) * self.planner.tokens / self.planner.rows
        return LivePack(trials, tokens, kept=sum(limits.best_bytes(trial) for trial in trials))

    def _seconds(self, runs: float, trials: int, training: float) -> float:
        return self.calibration.search_seconds(
            self.context, runs, trials, training=training, devices=self.planner.devices
        )


def _largest(options: SearchOptions, context: SearchContext, plan: SearchPlan) -> HyperParameters:
    """The default recipe at the largest rank that the search may train, with magnitudes where a trial may have them."""
    planned = [trial.hyper_parameters.r for stage in plan.stages for trial in stage.examples]
    recipe = options.hyper_parameters(epochs=context.wishes.epochs)
    return replace(recipe, use_dora=options.may_be_dora, r=max(*candidate_ranks(context), *planned, 1))
