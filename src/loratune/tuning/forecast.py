"""The plan with prices: strategy, calibration, packs, predicted time and memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite
from time import monotonic
from typing import Any

from loratune.analysis.final import EXAMPLES
from loratune.analysis.written import SHOWN_TOKENS
from loratune.costs.budget import STEPS_PER_DOUBLING, Budget, in_words
from loratune.costs.calibration import Calibration
from loratune.costs.generation import FINALISTS, Generation, cached_tokens, writing_bytes
from loratune.costs.planner import Planner
from loratune.costs.readings import Evaluations, final_evaluations
from loratune.errors import BudgetError
from loratune.maths.laws import useful_batches
from loratune.model.digest import weights_digest
from loratune.model.source import locate
from loratune.reporting.wording import duration, price
from loratune.runners.local import tell_first_uses
from loratune.runners.runner import NoiseJob, NoiseMeasured, only
from loratune.search.carried import carried_context
from loratune.search.layer_ranks import QUESTION
from loratune.search.make import make_strategy
from loratune.search.space import prior_setting
from loratune.search.strategy import Strategy
from loratune.tuning.experience import Corrections
from loratune.tuning.options import SearchOptions
from loratune.tuning.pricing import Pricing
from loratune.tuning.remembered import NoiseMemory
from loratune.tuning.workbench import Workbench, calibrations, search_context
from loratune.values import Carried, NoiseScale, PlannedStage, SearchContext, SearchPlan, Stage
from loratune.values.events import Note, Planned, Tell
from loratune.values.plain import to_plain

_LAYER_RANK_RUNS = 3
_NOTED_SHARE = 0.15
"""Share of evaluation in the final run's training above which the plan says so."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Forecast:
    """What a search would run, and what it would take."""

    strategy: Strategy
    plan: SearchPlan
    calibration: Calibration
    planner: Planner
    """How trials are packed."""
    slots: int
    """Trials that train side by side, at most, if results come as expected."""
    spent_seconds: float
    """Loading and calibration, measured."""
    search_seconds: float
    final_seconds: float
    """The final run, and what is done with the largest adapter of the search before it."""
    final_run_seconds: float
    """The final run alone."""
    test_seconds: float
    """The part of it that follows the last step."""
    limit: float | None
    """Seconds for everything, where the budget is a time that was to be kept here."""
    looks: Evaluations
    """Early stopping's, in the final run."""
    peak_bytes: int
    price_per_hour: float = 0.0
    """Price of the machine, in the user's currency; 0 where it is not known."""
    reference_seconds: float = 0.0
    """Time for the base model's likelihoods of all pairs, which preferences are compared with: once for all trials."""
    corrections: Corrections
    """What earlier studies say of learning rate and rank, and a measured noise scale of batch sizes."""
    generation: Generation | None = None
    """What is written, where the metric is one of generated text."""
    generation_seconds: float = 0.0
    """The part of `final_seconds` that generates text."""
    after_seconds: float = 0.0
    """The part of it that trains what the plan's last stages name, after the search."""
    proxy: Forecast | None = None
    """The search on a smaller model that goes before; None in a run, where that has ended."""

    @property
    def context(self) -> SearchContext:
        return self.strategy.context

    @property
    def seconds(self) -> float:
        """The whole run, what it took to get here included."""
        return self.spent_seconds + self.reference_seconds + self.search_seconds + self.final_seconds

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of time; empty as a rule."""
        found = self._carried()
        if self.limit is not None and self.seconds > self.limit:
            found.append(
                f"The whole run is expected to take {duration(self.seconds)}, more than --budget: its clock will cut "
                "the search. Fewer trials would hardly be faster, as their steps wait for results; raise --budget."
            )
        if self.reference_seconds:
            found.append(
                "The likelihoods of all pairs under the base model, with which every trial is compared, are computed "
                f"once: {duration(self.reference_seconds)}, unless an earlier command has kept them."
            )
        if self.calibration.threads:
            found.append(
                f"Other programs use this processor: steps are fastest with {self.calibration.threads} of its "
                "threads, as measured, and run with them."
            )
        if self.looks.share > _NOTED_SHARE:
            found.append(
                f"The training rows are few: {self.looks.count} evaluations for early stopping, each on "
                f"{self.looks.rows} validation rows, cost {self.looks.share:.0%} of the final run's training."
            )
        if self.generation is not None:
            each = self.generation
            found.append(
                f"Generated text, at most {each.max_new_tokens} tokens a row: {FINALISTS} adapters of the search and "
                f"the final models on {each.validation_rows} validation rows, these on {each.test_rows} test rows; "
                f"up to {duration(self.generation_seconds)} of the final run (--validation-rows, --test-rows and "
                "--max-new-tokens make it shorter)."
            )
        return tuple(found)

    def _carried(self) -> list[str]:
        """Where the setting comes from whose learning rate is measured here."""
        carried = self.corrections.carried
        if carried is None:
            return []
        if self.proxy is None:
            return [carried.sentence]
        return [
            f"Planned as if the search on {carried.model} found rank {carried.setting.r} and learning rate "
            f"{carried.setting.learning_rate:g}. That search and its own final run: {duration(self.proxy.seconds)}; "
            f"with what is planned here {duration(self.proxy.seconds + self.seconds)}."
        ]

    def event(self, bench: Workbench) -> Planned:
        """The plan as an event."""
        return Planned(
            data=bench.data.profile,
            model=bench.profile,
            plan=self.plan,
            slots=self.slots,
            peak_bytes=self.peak_bytes,
            memory_bytes=bench.limits.device_bytes,
            search_seconds=self.search_seconds,
            final_seconds=self.final_seconds,
            final_run_seconds=self.final_run_seconds,
            test_seconds=self.test_seconds,
            after_seconds=self.after_seconds,
            data_notes=bench.notes,
            notes=self.notes,
            price_per_hour=self.price_per_hour,
            devices=self.planner.devices,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `plan --json`."""
        return {
            "strategy": self.strategy.name,
            "budget": {"full_runs": self.context.wishes.budget},
            "stages": to_plain(self.plan.stages),
            "dropped": list(self.plan.dropped),
            "trials": self.plan.trials,
            "cost": {"full_runs": self.plan.cost},
            "calibration": to_plain(self.calibration),
            "slots": self.slots,
            "devices": self.planner.devices,
            **({"reference_seconds": self.reference_seconds} if self.reference_seconds else {}),
            "final_evaluation": {
                "looks": self.looks.count,
                "rows": self.looks.rows,
                "share_of_training": self.looks.share,
            },
            "predicted_seconds": {
                "search": self.search_seconds,
                "final": self.final_seconds,
                **({"proxy": self.proxy.seconds} if self.proxy else {}),
                "total": self.seconds + (self.proxy.seconds if self.proxy else 0.0),
            },
            **({"proxy": self.proxy.to_dict()} if self.proxy else {}),
            **self._written(),
            **self._price(),
            "predicted_peak_memory_bytes": self.peak_bytes,
            "prior": to_plain(self.corrections),
        }

    def _written(self) -> dict[str, Any]:
        """The part of `plan --json` on generated text; empty where there is none."""
        if self.generation is None:
            return {}
        return {"generation": {**to_plain(self.generation), "seconds": self.generation_seconds}}

    def _price(self) -> dict[str, Any]:
        """The part of `plan --json` on the price; empty without one."""
        if not self.price_per_hour:
            return {}
        return {
            "price_per_hour": self.price_per_hour,
            "predicted_price": price(self.seconds, self.price_per_hour),
        }


def forecast(
    bench: Workbench,
    options: SearchOptions,
    calibration: Calibration,
    *,
    started: float,
    corrections: Corrections,
    planned: Mapping[str, Any] | None = None,
) -> Forecast:
    """Fit the strategy to the budget and price it. `started` is `time.monotonic()` at the start of the command;
    `planned` is what an earlier part of the run planned (`runs`, `pace`), `corrections` what earlier studies say.

    Raises `BudgetError` for a budget too small for one trial.
    """
    bench = bench.calibrated(calibration)
    context = search_context(bench, options).changed(
        rate_factor=corrections.rate,
        rank_factor=corrections.rank,
        useful_batches=corrections.batches,
        pace=calibration.pace if planned is None else planned["pace"],
    )
    if corrections.carried is not None:
        context = carried_context(context, corrections.carried.setting)
    test_tokens, validation_rows = int(bench.data.test.lengths.sum()), len(bench.data.validation)
    written, written_at_end = _written_seconds(bench.generation, calibration.forward)
    shown = _shown_seconds(bench, options, calibration)
    spent = monotonic() - started
    reference = _reference_seconds(bench, options, calibration)
    budget = Budget.parse(options.budget)
    seconds, devices = None, bench.facts.devices  # no limit
    alone = context.seconds_alone if context.costs.pace else 0.0
    others = written + reference + calibration.final_seconds(context, test_tokens, validation_rows, devices)
    if corrections.carried is not None:
        runs: float | None = context.wishes.budget  # the user's is of the proxy
    else:
        runs = planned["runs"] if planned else budget.runs_on(alone=alone, gpu=bench.on_gpu, others=others)
    if runs is None:
        assert budget.seconds is not None
        further = _LAYER_RANK_RUNS if options.layer_ranks else 0
        seconds = calibration.seconds_within(
            budget.seconds,
            context,
            test_tokens,
            validation_rows,
            spent + reference + shown,
            further,
            devices,
            writing=written,
        )
        runs = calibration.runs_within(devices * seconds, context)
    try:
        pricing = Pricing.of(bench, options, calibration, context.changed(budget=runs))
    except BudgetError:
        if seconds is None:
            raise
        more = calibration.more_seconds(_least_runs(options, context, runs), context, seconds, devices)
        raise BudgetError(
            f"--budget {options.budget} leaves {duration(seconds)} to search, which pays for no trial; raise it to at "
            f"least {in_words((budget.seconds or 0.0) + more)} or lower --train-rows."
        ) from None
    if seconds is not None:
        pricing = pricing.within(seconds)
    strategy, context, largest = pricing.strategy, pricing.context, pricing.largest
    stages = tuple(pricing.stage(stage) for stage in pricing.plan.stages)
    after = tuple(pricing.stage(stage) for stage in _after_search(options))
    at_end = written_at_end + shown
    final_run = calibration.final_seconds(context, test_tokens, validation_rows, devices) + at_end
    after_seconds = sum(stage.seconds for stage in after)
    final = final_run + written - written_at_end + after_seconds
    if options.kind.is_cut:
        final += calibration.truncation_seconds(context, largest.r, validation_rows)
    return Forecast(
        strategy=strategy,
        plan=replace(pricing.plan, stages=(*stages, *after)),
        calibration=calibration,
        planner=pricing.planner,
        slots=pricing.widest,
        spent_seconds=spent,
        reference_seconds=reference,
        search_seconds=sum(stage.seconds for stage in stages),
        final_seconds=final,
        final_run_seconds=final_run,
        test_seconds=calibration.test_seconds(context, test_tokens) + at_end,
        limit=None if seconds is None else budget.seconds,
        looks=final_evaluations(context, validation_rows),
        peak_bytes=max(
            pricing.peak_bytes,
            0 if bench.generation is None else bench.generation.peak_bytes(bench.limits),
            writing_bytes(bench.limits, _shown_cache(bench)) if bench.writes_shown else 0,
        ),
        price_per_hour=options.price_per_hour or 0.0,
        corrections=corrections,
        generation=bench.generation,
        generation_seconds=written,
        after_seconds=after_seconds,
    )


def _least_runs(options: SearchOptions, context: SearchContext, refused: float) -> float:
    """The smallest budget above the refused one, in steps of `coarse`, that pays for a trial."""
    runs = refused
    while True:
        runs = 2 ** (1 / STEPS_PER_DOUBLING) * max(runs, 1e-3)
        try:
            make_strategy(options.strategy, context.changed(budget=runs)).plan()
        except BudgetError:
            continue
        return runs


def _written_seconds(generation: Generation | None, forward: float) -> tuple[float, float]:
    """Seconds of all generated text, and of that of the final run, after its last step; 0 where there is none."""
    if generation is None:
        return 0.0, 0.0
    at_end = generation.final_seconds(forward) + generation.test_seconds(forward)
    return generation.finalists_seconds(forward) + at_end, at_end


def _shown_seconds(bench: Workbench, options: SearchOptions, calibration: Calibration) -> float:
    """Seconds of the texts shown: two models on a few rows, a token of each at a step without a backward pass."""
    if not bench.writes_shown:
        return 0.0
    rows, lengths = 2 * EXAMPLES, bench.data.test.example_lengths
    tokens = min(
        SHOWN_TOKENS, options.max_new_tokens or SHOWN_TOKENS, int(bench.data.test.lengths.max(initial=1))
    )
    read = rows * float(lengths.mean()) if len(lengths) else 0.0
    return 0.5 * tokens * calibration.times.seconds(rows) + read / calibration.forward


def _shown_cache(bench: Workbench) -> int:
    """Tokens of the cache of keys and values while it is written."""
    return min(cached_tokens(bench.limits), 2 * EXAMPLES * (bench.limits.max_length + SHOWN_TOKENS))


def _reference_seconds(bench: Workbench, options: SearchOptions, calibration: Calibration) -> float:
    """One pass over all splits; 0 where nothing compares with the base model."""
    if not bench.facts.needs_reference:
        return 0.0
    data = bench.data
    return (
        sum(int(table.lengths.sum()) for table in (data.train, data.validation, data.test))
        / calibration.forward
    )


def budget_values(option: str, priced: Forecast) -> dict[str, Any]:
    """What a resumed run must plan by, as JSON values: then it decides alike."""
    pace = priced.context.costs.pace
    return {
        "option": option,
        "runs": priced.context.wishes.budget,
        "seconds": priced.seconds,
        "pace": to_plain(pace),
    }


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


SHARE = 0.1
"""Share of one full run's rows that the measurement may read."""
STRATEGY = "evidence"
"""The strategy whose batch sizes are relative to a law."""


def first_forecast(
    bench: Workbench,
    options: SearchOptions,
    calibration: Calibration,
    *,
    started: float,
    corrections: Corrections,
    tell: Tell,
) -> Forecast:
    """The plan of a new search, with the noise scale measured where it is of use.

    A resumed search keeps its first range: its finished trials depend on it.
    """
    tell_first_uses(tell)  # the calibration's, which nobody was told of
    priced = forecast(bench, options, calibration, started=started, corrections=corrections)
    if not _compares_batches(options, priced):
        return priced
    corrections = _with_range(bench.calibrated(calibration), options, priced, tell)
    return forecast(bench, options, calibration, started=started, corrections=corrections)


def expected_on_proxy(model: str, proxy: Forecast) -> Corrections:
    """Expectations for a plan: as if the proxy's search, which was not run, came to what the laws expect."""
    setting = prior_setting(proxy.context)
    expected = Carried(
        model=model, directory="", setting=setting, trials=proxy.plan.trials, seconds=proxy.seconds
    )
    return Corrections(carried=expected)


def _compares_batches(options: SearchOptions, priced: Forecast) -> bool:
    """Whether the plan tries batch sizes that the user has not named."""
    planned = any(stage.name == str(Stage.BATCH) and stage.trials for stage in priced.plan.stages)
    # of a group of rows the noise is not measured: the loss of one row alone says nothing
    alone = options.kind.group == 1
    return options.strategy == STRATEGY and not options.batch_sizes and planned and alone


def _with_range(bench: Workbench, options: SearchOptions, priced: Forecast, tell: Tell) -> Corrections:
    """The plan's corrections with a range of batch sizes, or with a note why there is none."""
    context = priced.context
    setting = prior_setting(context)
    job = NoiseJob(
        r=setting.r,
        lora_alpha=setting.lora_alpha,
        share=SHARE,
        epochs=context.wishes.epochs,
        seed=options.seed,
    )
    noise, known = _noise(bench, options, job, tell), priced.corrections
    if noise is None:
        note = (
            "The gradient noise scale was not measured (it takes more than a tenth of a full run here): the batch "
            "sizes tried are those around the law's."
        )
        return replace(known, notes=(*known.notes, note))
    batches = useful_batches(rows=context.data.rows, epochs=context.wishes.epochs, noise=noise)
    return replace(known, notes=(*known.notes, _noise_note(noise, batches)), batches=batches)


def _noise(bench: Workbench, options: SearchOptions, job: NoiseJob, tell: Tell) -> NoiseScale | None:
    """What an earlier command has measured of the same rows and weights, else a measurement."""
    weights = weights_digest(locate(options.model))
    asked = [bench.data.fingerprint, weights, *to_plain(job).values()]
    memory = NoiseMemory(calibrations(), bench.facts, bench.data.train, options, asked)
    if not options.recalibrate and (kept := memory.kept()) is not None:
        return kept
    tell(Note(text="Measuring the gradient noise scale: it sets the range of batch sizes."))
    measured = only(bench.runner.run([job]))
    assert isinstance(measured, NoiseMeasured)
    tell_first_uses(tell)
    if measured.noise is not None:
        memory.keep(measured.noise)
    return measured.noise


def _noise_note(noise: NoiseScale, batches: tuple[float, float]) -> str:
    low, value, high = (
        f"{end:.0f}" if isfinite(end) else "no upper end" for end in (noise.low, noise.rows, noise.high)
    )
    found = f"is {value} rows" if isfinite(noise.rows) else "has no upper end"
    return (
        f"The gradient noise scale {found} (90 % [{low}, {high}], measured over {noise.steps} early steps; it grows as "
        f"the loss falls), so batch sizes from {batches[0]:g} to {batches[1]:g} are worth trying."
    )
