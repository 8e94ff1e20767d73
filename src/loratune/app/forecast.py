"""The plan with prices: strategy, calibration, packs, predicted time and memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from time import monotonic
from typing import Any

from loratune.app.context import search_context
from loratune.app.experience import Corrections
from loratune.app.options import SearchOptions
from loratune.app.workbench import Workbench
from loratune.engine.calibrate import measure
from loratune.errors import ResourceError
from loratune.run.budget import Budget
from loratune.run.calibration import Calibration
from loratune.search.layer_ranks import QUESTION
from loratune.search.make import make_strategy
from loratune.search.space import candidate_ranks
from loratune.search.strategy import Strategy
from loratune.values import HyperParameters, PlannedStage, SearchContext, SearchPlan, Stage, Trial

_CALIBRATION_SECONDS = 2.0
_LAYER_RANK_RUNS = 3
_CALIBRATION_SHARE = 0.6
"""Of a micro-batch's tokens: enough to be as fast as a full one, and quick."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Forecast:
    """What a search would run, and what it would take."""

    strategy: Strategy
    plan: SearchPlan
    calibration: Calibration
    slots: int
    """Trials per pack, so that even the largest rank fits in memory."""
    spent_seconds: float
    """Loading and calibration, measured."""
    search_seconds: float
    final_seconds: float
    """The final run, and what is done with the largest adapter of the search before it."""
    peak_bytes: int
    corrections: Corrections
    """What earlier studies say of learning rate and rank."""

    @property
    def context(self) -> SearchContext:
        return self.strategy.context

    @property
    def seconds(self) -> float:
        """The whole run, what it took to get here included."""
        return self.spent_seconds + self.search_seconds + self.final_seconds

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `plan --json`."""
        return {
            "strategy": self.strategy.name,
            "budget": {"full_runs": self.context.budget},
            "stages": [stage.to_dict() for stage in self.plan.stages],
            "dropped": list(self.plan.dropped),
            "trials": self.plan.trials,
            "cost": {"full_runs": self.plan.cost},
            "calibration": self.calibration.to_dict(),
            "slots": self.slots,
            "predicted_seconds": {
                "search": self.search_seconds,
                "final": self.final_seconds,
                "total": self.seconds,
            },
            "predicted_peak_memory_bytes": self.peak_bytes,
            "prior": self.corrections.to_dict(),
        }


def calibrate(bench: Workbench, options: SearchOptions) -> Calibration:
    """A few measured steps of the default recipe: in a pack that fills a micro-batch, alone, in evaluation."""
    lengths = bench.data.train.lengths
    recipe = options.hyper_parameters()
    recipe = replace(recipe, r=min(recipe.r, bench.base.profile.largest_rank))
    slots = bench.pack_size(recipe, options.pack_size)
    alone = replace(recipe, batch_size=min(recipe.batch_size, len(lengths)))
    rows = int(_CALIBRATION_SHARE * bench.limits.micro_batch_tokens / (slots * lengths.mean()))
    shared = replace(recipe, batch_size=max(1, min(alone.batch_size, rows)))
    speed = measure(
        bench.engine,
        [Trial(hyper_parameters=shared, seed=seed) for seed in range(slots)],
        Trial(hyper_parameters=alone),
        seconds=_CALIBRATION_SECONDS,
    )
    return Calibration(pack=speed.pack, alone=speed.alone, forward=speed.forward, slots=slots)


def forecast(
    bench: Workbench,
    options: SearchOptions,
    calibration: Calibration,
    *,
    started: float,
    corrections: Corrections,
    runs: float | None = None,
) -> Forecast:
    """Fit the strategy to the budget and price it. `started` is `time.monotonic()` at the start of the command;
    `runs` is the budget in full-run equivalents where it is known already, `corrections` what earlier studies say.

    Raises `BudgetError` for a budget too small for one trial.
    """
    context = search_context(bench, options)
    test_tokens = int(bench.data.test.lengths.sum())
    spent = monotonic() - started
    if runs is None:
        further = _LAYER_RANK_RUNS if options.layer_ranks else 0
        runs = calibration.runs_within(Budget.parse(options.budget), context, test_tokens, spent, further)
    context = replace(context, budget=runs, rate_factor=corrections.rate, rank_factor=corrections.rank)
    strategy = make_strategy(options.strategy, context)
    plan = strategy.plan()
    largest = _largest(options, context, plan)
    if bench.limits.estimate([largest]).total > bench.limits.device_bytes:
        raise ResourceError(
            f"One trial of rank {largest.r} needs {bench.limits.estimate([largest]).total / 2**30:.1f} GiB and "
            f"{bench.limits.device_bytes / 2**30:.1f} GiB are there; lower --ranks or --max-length."
        )
    slots = min(calibration.slots, bench.pack_size(largest, options.pack_size))
    stages = tuple(_priced(stage, context, calibration, slots) for stage in plan.stages)
    after = tuple(_priced(stage, context, calibration, slots) for stage in _after_search(options))
    final = calibration.final_seconds(context, test_tokens) + sum(stage.seconds for stage in after)
    final += calibration.truncation_seconds(context, largest.r, len(bench.data.validation))
    return Forecast(
        strategy=strategy,
        plan=replace(plan, stages=(*stages, *after)),
        calibration=calibration,
        slots=slots,
        spent_seconds=spent,
        search_seconds=sum(stage.seconds for stage in stages),
        final_seconds=final,
        peak_bytes=bench.limits.estimate([largest] * slots).total,
        corrections=corrections,
    )


def _after_search(options: SearchOptions) -> tuple[PlannedStage, ...]:
    """Trials between search and final run, beyond the search's budget."""
    if not options.layer_ranks:
        return ()
    return (
        PlannedStage(
            name=str(Stage.LAYER_RANKS),
            question=QUESTION,
            trials=_LAYER_RANK_RUNS,
            cost=float(_LAYER_RANK_RUNS),
            note="beyond the search's budget; a single run where it looks no better",
        ),
    )


def _largest(options: SearchOptions, context: SearchContext, plan: SearchPlan) -> HyperParameters:
    """The default recipe at the largest rank that the search may train."""
    planned = [trial.hyper_parameters.r for stage in plan.stages for trial in stage.examples]
    return replace(options.hyper_parameters(), r=max(*candidate_ranks(context), *planned, 1))


def _priced(
    stage: PlannedStage, context: SearchContext, calibration: Calibration, slots: int
) -> PlannedStage:
    return replace(
        stage,
        packs=ceil(stage.trials / slots),
        seconds=calibration.search_seconds(context, stage.cost, stage.trials),
    )
