"""Model, data and engine put together from the options: what every command that trains starts with.

Everything that can be wrong with the user's input is found here, before anything is written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from loratune.analysis.subject import Subject
from loratune.costs.budget import Budget, TooSlow, in_words
from loratune.costs.calibration import Calibration
from loratune.costs.ceiling import USUAL_SHARE
from loratune.costs.generation import Generation
from loratune.costs.limits import Limits
from loratune.costs.threads import running
from loratune.data.prepare import PreparedData
from loratune.data.survey import Decoder, survey
from loratune.engine.labels import labelling_passes
from loratune.errors import BudgetError, InputError
from loratune.lora.layout import find_targets
from loratune.lora.outputs import in_own_unit
from loratune.maths.laws import EPOCH_CHOICES, passes
from loratune.metrics import Metric, Needs, default_margin, find, metrics, searched_by
from loratune.model.device import wake
from loratune.model.tokenizer import load_tokenizer
from loratune.reporting.wording import duration
from loratune.runners.engines import Engines, Host, in_process
from loratune.runners.runner import (
    Calibrated,
    CalibrationJob,
    Runner,
    WritingJob,
    WritingMeasured,
    only,
)
from loratune.runners.spec import (
    EngineFacts,
    EngineSpec,
    data_facts,
    model_cache,
    read_rows,
    scoring_of,
    trial_costs,
)
from loratune.search.make import make_strategy
from loratune.tuning.options import CommonOptions, SearchOptions, data_options
from loratune.tuning.remembered import remember, remembered
from loratune.tuning.tried import try_metric
from loratune.values import (
    ModelFacts,
    ModelProfile,
    Pace,
    Problem,
    RunLimits,
    SearchContext,
    Wishes,
    default_recipe,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Workbench:
    """Ready to train."""

    options: CommonOptions
    spec: EngineSpec
    """The engines' specification, as they train now."""
    data: PreparedData
    tokenizer: PreTrainedTokenizerBase
    engines: Engines
    """Engines in this process or elsewhere; what needs one of them is a job of a runner."""
    limits: Limits
    """What fits in memory."""
    generation: Generation | None = None
    """What writing text takes, where the metric needs it."""

    @property
    def facts(self) -> EngineFacts:
        """What is known of the engines."""
        return self.engines.facts

    @property
    def profile(self) -> ModelProfile:
        """The base model's profile."""
        return self.facts.profile

    @property
    def on_gpu(self) -> bool:
        """Whether trials are trained on one."""
        return not self.facts.on_cpu

    @cached_property
    def subject(self) -> Subject:
        """What analysis knows of the study."""
        return Subject(
            train=self.data.train,
            validation=self.data.validation,
            scoring=scoring_of(self.spec, self.data, self.tokenizer),
            profile=self.profile,
            labelled=bool(self.data.label_tokens),
            seed=self.spec.data.seed,
            test=self.data.test,
            group=self.facts.group,
            on_cpu=self.facts.on_cpu,
        )

    @property
    def runner(self) -> Runner:
        """One for jobs that train no trial of a search."""
        return self.engines.runner(self.spec)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is unusual about the model, and how the rows were read: a sentence each."""
        return (*self.profile.notes, *self.data.notes)

    @property
    def writes_shown(self) -> bool:
        """Whether the report shows what models write on some test rows: where labels do not say it all."""
        return self.spec.data.kind.has_completions and (
            self.subject.scoring.generates or not self.data.labels
        )

    @property
    def labelling_passes(self) -> float:
        """What finding the validation rows' labels takes, in passes over them."""
        return labelling_passes(self.data.label_tokens, self.data.validation)

    def calibrate(self, options: SearchOptions, spent: float = 0.0) -> Calibration:
        """A few measured steps of the default recipe, or what an earlier command has measured here.

        `spent`: seconds since the start. Raises `BudgetError` as soon as a budget in time is seen not to work.
        """
        known = (
            None if options.recalibrate else remembered(calibrations(), self.facts, self.data.train, options)
        )
        recipe, budget = options.hyper_parameters(**options.variant), Budget.parse(options.budget)
        # where all trials are DoRA every step is measured with it
        dora = options.may_be_dora and not recipe.use_dora
        if known is not None and (known.dora or not dora):
            return known
        if options.proxy is None:
            _check_runs(self, options, budget)
        epochs = passes(options.epochs, len(self.data.train))
        tokens = _FINAL_TRIALS * epochs * float(self.data.train.lengths.sum())
        left = None if budget.seconds is None else _left(options, budget.seconds - spent, spent)
        least = 0.0 if left is None else tokens / left / min(self.facts.devices, _FINAL_TRIALS)
        job = CalibrationJob(recipe=recipe, pack_size=options.pack_size, least_rate=least, dora=dora)
        try:
            found = only(self.runner.run([job]))
        except TooSlow as slow:
            raise _too_slow(options, slow, tokens, spent) from None
        assert isinstance(found, Calibrated)
        remember(calibrations(), self.facts, self.data.train, options, found.calibration)
        return found.calibration

    def calibrated(self, calibration: Calibration) -> Workbench:
        """The same with the micro-batches and the memory that were measured here; steps run with those threads."""
        tokens = calibration.micro_batch_tokens or self.limits.micro_batch_tokens
        tokens = max(tokens, self.facts.group * self.limits.max_length)
        return replace(
            self,
            spec=replace(
                self.spec,
                micro_batch_tokens=tokens,
                evaluation_tokens=calibration.evaluation_tokens or None,
                threads=calibration.threads,
            ),
            limits=replace(self.limits, micro_batch_tokens=tokens, correction=calibration.correction),
        )


def _too_slow(options: SearchOptions, slow: TooSlow, tokens: float, spent: float) -> BudgetError:
    """The final run's `tokens` alone take longer than the budget."""
    final = tokens / slow.rate
    usual = final / USUAL_SHARE if slow.ceiling else final
    needs = (
        f"the final run needs more than {duration(final)}, as its products show: this device trains at most "
        f"{slow.rate:.0f} tokens/s"
        if slow.ceiling
        else f"at the {slow.rate:.0f} tokens/s of a first step the final run needs {final:.0f} s"
    )
    return BudgetError(
        f"--budget {options.budget} leaves no time to search: loading took {spent:.0f} s, and {needs}; give at least "
        f"{in_words(spent + 2 * usual)} or lower --train-rows."
    )


_PACE_SHIFT = 1.1
"""How far measured steps may move the price of a trial on a CPU, where they cost what their tokens do."""
_GPU_PACES = (
    Pace(steps=((0.0, 1.0), (1e12, 1.0)), forward=inf, slots=64),
    Pace(steps=((1.0, 1.0),), forward=inf, slots=64),
)
"""Bounds of a GPU's pace: a step is a launch whatever it holds, or its tokens alone."""


def _check_runs(bench: Workbench, options: SearchOptions, budget: Budget) -> None:
    """Raise `BudgetError` for a budget in full runs that pays for no trial, whatever steps take here."""
    if budget.runs is None or (budget.least_seconds and bench.on_gpu):
        return
    context = search_context(bench, options).changed(budget=budget.runs)
    hoped = context.changed(budget=_PACE_SHIFT * budget.runs)
    for pace in _GPU_PACES if bench.on_gpu else (None,):
        try:
            make_strategy(options.strategy, hoped.changed(pace=pace)).plan()
            return
        except BudgetError:
            continue
    make_strategy(options.strategy, context).plan()


def _left(options: SearchOptions, left: float, spent: float) -> float:
    """Seconds after loading."""
    if left > 0:
        return left
    raise BudgetError(
        f"--budget {options.budget} leaves no time to search: loading alone took {spent:.0f} s; give for example "
        f"{in_words(60 + 10 * spent)}, or 3x, three times the seconds of one final run."
    )


def calibrations() -> Path:
    """Where calibrations are kept: $LORATUNE_CALIBRATIONS, else beside the unpacked weights."""
    chosen = os.environ.get("LORATUNE_CALIBRATIONS")
    return Path(chosen) if chosen else model_cache() / "calibrations"


def with_survey(data: PreparedData, tokenizer: Decoder, seed: int) -> PreparedData:
    """The same rows, their profile with a closer look at them."""
    firsts = {
        split: getattr(data, split).firsts for split in ("train", "validation", "test")
    }  # of pairs the chosen
    found = survey(replace(data, **firsts), tokenizer, seed=seed)
    return replace(data, profile=replace(data.profile, survey=found))


@contextmanager
def open_workbench(
    options: CommonOptions,
    *,
    targets: tuple[str, ...],
    ranks: tuple[int, ...],
    epochs: float | Literal["auto"],
    metric: str = "nll",
    max_new_tokens: int | None = None,
    labels_at_end: bool | None = None,
    surveyed: bool = False,
    weight_format: str | None = None,
    host: Host = in_process,
) -> Iterator[Workbench]:
    """Load and check everything; the tokens of large data live in a temporary folder that goes in the end.

    Args:
        max_new_tokens, labels_at_end: as in `EngineSpec`.
        surveyed: whether the data's profile has its survey, which takes seconds.
        weight_format: of the base model where an earlier part of the study has settled it.
        host: has the engines.

    Raises `InputError` of all kinds for wrong input, `ResourceError` for a device that is absent or too small.
    """
    spec = EngineSpec(
        model=options.model,
        data=data_options(options),
        dtype=options.dtype,  # type: ignore[arg-type]
        device=options.device,
        device_memory=options.device_memory,
        recompute=options.recompute,
        objective=options.learns,
        dora=options.may_be_dora,
        metric=metric,
        max_new_tokens=max_new_tokens,
        epochs=epochs,
        target_modules=targets,
        ranks=ranks,
        weight_format=weight_format,
        labels_at_end=labels_at_end,
    )
    if host is in_process:
        wake(options.device)
    tokenizer = load_tokenizer(options.model, cache=model_cache(), classifies=options.kind.has_answers)
    with TemporaryDirectory(prefix="loratune-") as folder:
        data = read_rows(spec.model, spec.data, tokenizer, Path(folder))
        with host(spec, data, tokenizer) as engines, running(_threads(engines.facts)):
            facts = engines.facts
            bench = Workbench(
                options=options,
                spec=replace(spec, weight_format=facts.profile.weight_format),
                data=with_survey(data, tokenizer, options.seed) if surveyed else data,
                tokenizer=tokenizer,
                engines=engines,
                limits=facts.limits,
            )
            tried = try_metric(bench.subject, bench.runner, data, spec.data)
            notes = (*data.notes, *facts.notes, *tried, *_without_text(bench))
            yield replace(bench, data=replace(bench.data, notes=notes), generation=_generation(bench))


def open_for_search(
    options: SearchOptions, host: Host, *, weight_format: str | None = None
) -> AbstractContextManager[Workbench]:
    """`open_workbench` with all that a search by these options asks for."""
    return open_workbench(
        options,
        targets=options.target_modules,
        ranks=options.ranks,
        epochs=options.epochs,
        metric=options.optimised,
        max_new_tokens=options.max_new_tokens,
        surveyed=True,
        weight_format=weight_format,
        host=host,
    )


def _threads(facts: EngineFacts) -> int:
    """A calibration may choose fewer in this process; several engines on a processor have their share of them."""
    return max(1, torch.get_num_threads() // facts.devices) if facts.on_cpu and facts.devices > 1 else 0


def _without_text(bench: Workbench) -> tuple[str, ...]:
    """A sentence where the user limits what nobody writes."""
    if bench.spec.max_new_tokens is None or bench.writes_shown:
        return ()
    return (
        "--max-new-tokens has no effect: no text is generated here, neither for the metric nor for the report.",
    )


def _generation(bench: Workbench) -> Generation | None:
    """What writing text takes, measured in a moment; None where none is written."""
    if not bench.subject.scoring.generates:
        return None
    measured = only(bench.runner.run([WritingJob()]))
    assert isinstance(measured, WritingMeasured)
    return measured.generation


def in_unit_of_rows(bench: Workbench) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What becomes of an adapter's tensors when it is handed over: a regression's numbers get their own unit."""
    facts = bench.engines.facts
    kind = facts.classifier
    if kind is None:
        return lambda tensors: tensors
    return lambda tensors: in_own_unit(tensors, facts.output_layer, kind.centre, kind.scale)


def _check_numbers(metric: Metric, data: PreparedData) -> None:
    """Raise `InputError` for a metric of numbers where rows have labels or text, and the other way round."""
    numbers = data.classifier is not None and data.classifier.problem is Problem.NUMBER
    if metric.needs is Needs.LIKELIHOOD or numbers is (metric.needs is Needs.NUMBERS):
        return
    needed = (
        "numbers to be met (--task classification)" if metric.needs is Needs.NUMBERS else "labels or text"
    )
    raise InputError(
        f"--metric {metric.name} needs {needed}, and these rows are {data.profile.shape}; choose "
        f"{'nll or correlation' if numbers else 'nll, accuracy or f1'}."
    )


def model_facts(profile: ModelProfile, target_modules: tuple[str, ...]) -> ModelFacts:
    """What a strategy knows of the base model."""
    targets = find_targets(profile.targets, target_modules)
    return ModelFacts(
        hidden_size=profile.hidden_size,
        family=profile.family,
        parameters_per_rank=sum(target.in_features + target.out_features for target in targets),
        largest_rank=min(min(target.in_features, target.out_features) for target in targets),
        targets=profile.targets,
    )


_LARGEST_BATCH = 1024
_FINAL_TRIALS = 2
"""Fewest trials of the final run: what was found and the default recipe."""


def search_context(bench: Workbench, options: SearchOptions) -> SearchContext:
    """Everything but the budget. Raises `InputError` for a metric that the data cannot have."""
    data, profile = bench.data, bench.profile
    metric = searched_by(find(options.optimised))
    margin = options.margin if metric.name == options.optimised else None
    _check_numbers(metric, data)
    if metric.needs is Needs.LABELS and not data.labels:
        others = ", ".join(each.name for each in metrics() if each.needs is not Needs.LABELS)
        raise InputError(
            f"--metric {options.optimised} needs labelled data (text and label columns), and these rows are "
            f"{data.profile.shape}; choose one of {others}."
        )
    return SearchContext(
        data=data_facts(data),
        model=model_facts(profile, options.target_modules),
        costs=trial_costs(metric, data, bench.labelling_passes),
        limits=RunLimits(largest_batch=_largest_batch(bench)),
        wishes=Wishes(
            epochs=passes(options.epochs, data.train.examples),
            epoch_choices=EPOCH_CHOICES if options.epochs == "auto" else (),
            warmup_ratio=options.warmup_ratio,
            target_modules=options.target_modules,
            ranks=tuple(sorted(set(options.ranks))),
            learning_rates=tuple(sorted(set(options.learning_rates))),
            batch_sizes=tuple(sorted(set(options.batch_sizes))),
            metric=metric.name,
            margin=margin or default_margin(metric.name, len(data.labels)),
            seed=options.seed,
            regularise=options.regularise,
            tune_targets=options.tune_targets,
            beta=options.beta,
            betas=tuple(sorted(set(options.betas))),
            tune_variants=tuple(dict.fromkeys(options.tune_variants)),
            variant=tuple(options.variant.items()),
        ),
    )


def _largest_batch(bench: Workbench) -> int:
    """Rows per step that fit: any number where one micro-batch does, since batches are cut into those."""
    return _LARGEST_BATCH if bench.limits.fits([default_recipe()]) else 1
