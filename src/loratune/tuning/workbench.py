"""Model, data and engine put together from the options: what every command that trains starts with.

Everything that can be wrong with the user's input is found here, before anything is written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch

from loratune.analysis.subject import Subject
from loratune.costs.budget import Budget, TooSlow, in_words
from loratune.costs.calibration import Calibration
from loratune.costs.limits import Limits
from loratune.costs.threads import running
from loratune.data.prepare import PreparedData
from loratune.data.survey import Decoder, survey
from loratune.data.table import TokenTable
from loratune.engine.labels import labelling_passes
from loratune.engine.memory import Shortage
from loratune.engine.pack import PackEngine
from loratune.errors import BudgetError, InputError, OutputError
from loratune.files.lock import is_empty
from loratune.lora.layout import find_targets
from loratune.maths.laws import EPOCH_CHOICES, passes
from loratune.metrics import BUILT_IN, Metric, Needs, Outputs, default_margin, find, metrics
from loratune.model.base import BaseModel
from loratune.model.tokenizer import load_tokenizer
from loratune.runners.local import LocalRunner
from loratune.runners.runner import Calibrated, CalibrationJob, only
from loratune.runners.spec import EngineSpec, build, data_facts, model_cache, trial_costs
from loratune.tuning.options import CommonOptions, SearchOptions, data_options
from loratune.tuning.remembered import remember, remembered
from loratune.values import (
    ModelFacts,
    ModelProfile,
    RunLimits,
    SearchContext,
    Wishes,
    default_recipe,
)

ROWS = 32


def try_metric(engine: PackEngine) -> tuple[str, ...]:
    """Score the base model on a few validation rows, and the references against themselves; notes on what is odd.

    Raises `InputError` where the metric fails or gives anything but a finite score for each row.
    """
    metric = engine.scoring.metric
    if metric.name in BUILT_IN:
        return ()
    table = engine.sample(ROWS)
    (base,) = engine.evaluate([None], table, labels=engine.scoring.asks_labels)
    outputs = engine.scoring.outputs(base, table)
    return _oddities(metric, outputs, table)


def _oddities(metric: Metric, outputs: Outputs, table: TokenTable) -> tuple[str, ...]:
    scores = metric.scores(outputs)
    perfect = metric.scores(replace(outputs, texts=outputs.references))
    if scores is None or perfect is None:
        return ()
    info = metric.info
    base, best = metric.value(scores, outputs.rows), metric.value(perfect, outputs.rows)
    if info.loss(best) <= info.loss(base):
        return ()
    return (
        f"On {len(table)} rows the {info.title} of the references against themselves is {info.text(best)}, worse than "
        f"the base model's {info.text(base)}, while a {'larger' if info.larger_is_better else 'smaller'} one counts as "
        "better: see larger_is_better of loratune.metrics.metric.",
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Workbench:
    """Ready to train."""

    options: CommonOptions
    spec: EngineSpec
    """What `engine` was built from, as it is trained now."""
    data: PreparedData
    base: BaseModel
    engine: PackEngine
    limits: Limits
    """What fits in memory."""

    @property
    def subject(self) -> Subject:
        """What analysis knows of the study."""
        return Subject.of(self.engine, self.data.test)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is unusual about the model, and how the rows were read: a sentence each."""
        return (*self.base.profile.notes, *self.data.notes)

    @property
    def labelling_passes(self) -> float:
        """What finding the validation rows' labels takes, in passes over them."""
        return labelling_passes(self.data.label_tokens, self.data.validation)

    def calibrate(self, options: SearchOptions, spent: float = 0.0) -> Calibration:
        """A few measured steps of the default recipe, or what an earlier command has measured here.

        `spent`: seconds since the start. Raises `BudgetError` as soon as a budget in time is seen not to work.
        """
        known = None if options.recalibrate else remembered(calibrations(), self.engine, self.limits, options)
        if known is not None:
            return known
        runner = LocalRunner(engine=self.engine, limits=self.limits)
        recipe, budget = options.hyper_parameters(), Budget.parse(options.budget)
        tokens = _FINAL_TRIALS * recipe.epochs * float(self.data.train.lengths.sum())
        left = None if budget.seconds is None else _left(options, budget.seconds - spent, spent)
        job = CalibrationJob(
            recipe=recipe, pack_size=options.pack_size, least_rate=0.0 if left is None else tokens / left
        )
        try:
            found = only(runner.run([job]))
        except TooSlow as slow:
            final = tokens / slow.rate
            raise BudgetError(
                f"--budget {options.budget} leaves no time to search: loading took {spent:.0f} s, and at the "
                f"{slow.rate:.0f} tokens/s of a first step the final run needs {final:.0f} s; give at least "
                f"{in_words(spent + 2 * final)} or lower --train-rows."
            ) from None
        assert isinstance(found, Calibrated)
        remember(calibrations(), self.engine, self.limits, options, found.calibration)
        return found.calibration

    def with_shortage_handler(self, on_shortage: Callable[[Shortage], None]) -> Workbench:
        """The same with a function that is called with each out-of-memory error that was recovered from."""
        return replace(self, engine=replace(self.engine, on_shortage=on_shortage))

    def calibrated(self, calibration: Calibration) -> Workbench:
        """The same with the micro-batches and the memory that were measured here; steps run with those threads."""
        if calibration.threads:
            torch.set_num_threads(calibration.threads)
        tokens = calibration.micro_batch_tokens or self.limits.micro_batch_tokens
        tokens = max(tokens, self.limits.max_length)
        return replace(
            self,
            spec=replace(
                self.spec,
                micro_batch_tokens=tokens,
                evaluation_tokens=calibration.evaluation_tokens or None,
            ),
            engine=self.engine.with_micro_batches(
                tokens, in_evaluation=calibration.evaluation_tokens or None
            ),
            limits=replace(self.limits, micro_batch_tokens=tokens, correction=calibration.correction),
        )


def _left(options: SearchOptions, left: float, spent: float) -> float:
    """Seconds after loading."""
    if left > 0:
        return left
    raise BudgetError(
        f"--budget {options.budget} leaves no time to search: loading alone took {spent:.0f} s; give for example 3x, "
        "three times the seconds of one final run."
    )


def check_out(directory: Path) -> None:
    """Raise `OutputError` where a run directory is not new or empty."""
    if directory.exists() and (not directory.is_dir() or not is_empty(directory)):
        raise OutputError(
            f"--out must be a new or empty folder, but {directory} is not; go on with its study by --resume, "
            "or choose another --out."
        )


def calibrations() -> Path:
    """Where calibrations are kept: $LORATUNE_CALIBRATIONS, else beside the unpacked weights."""
    chosen = os.environ.get("LORATUNE_CALIBRATIONS")
    return Path(chosen) if chosen else model_cache() / "calibrations"


def with_survey(data: PreparedData, tokenizer: Decoder, seed: int) -> PreparedData:
    """The same rows, their profile with a closer look at them."""
    return replace(data, profile=replace(data.profile, survey=survey(data, tokenizer, seed=seed)))


@contextmanager
def open_workbench(
    options: CommonOptions,
    *,
    targets: tuple[str, ...],
    ranks: tuple[int, ...],
    epochs: float | Literal["auto"],
    metric: str = "nll",
    surveyed: bool = False,
    weight_format: str | None = None,
) -> Iterator[Workbench]:
    """Load and check everything; the tokens of large data live in a temporary folder that goes in the end.

    With `surveyed` the data's profile has its survey, which takes seconds. `weight_format`: of the base model where
    an earlier part of the study has settled it.
    Raises `InputError` of all kinds for wrong input, `ResourceError` for a device that is absent or too small.
    """
    spec = EngineSpec(
        model=options.model,
        data=data_options(options),
        dtype=options.dtype,  # type: ignore[arg-type]
        device=options.device,
        device_memory=options.device_memory,
        metric=metric,
        epochs=epochs,
        target_modules=targets,
        ranks=ranks,
        weight_format=weight_format,
    )
    tokenizer = load_tokenizer(options.model, cache=model_cache())
    with TemporaryDirectory(prefix="loratune-") as folder:
        built = build(spec, Path(folder), tokenizer=tokenizer)
        data = with_survey(built.data, tokenizer, options.seed) if surveyed else built.data
        data = replace(data, notes=(*data.notes, *try_metric(built.engine)))
        with running(0):  # a calibration may choose fewer threads, for this command alone
            yield Workbench(
                options=options,
                spec=built.spec,
                data=data,
                base=built.base,
                engine=built.engine,
                limits=built.limits,
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
"""Of the final run, at least: what was found and the default recipe."""


def search_context(bench: Workbench, options: SearchOptions) -> SearchContext:
    """Everything but the budget. Raises `InputError` for a metric that the data cannot have."""
    data, profile = bench.data, bench.base.profile
    metric = find(options.metric)
    if metric.needs is Needs.LABELS and not data.labels:
        others = ", ".join(each.name for each in metrics() if each.needs is not Needs.LABELS)
        raise InputError(
            f"--metric {options.metric} needs labelled data (text and label columns), and these rows are "
            f"{data.profile.shape}; choose one of {others}."
        )
    return SearchContext(
        data=data_facts(data),
        model=model_facts(profile, options.target_modules),
        costs=trial_costs(metric, data, bench.labelling_passes),
        limits=RunLimits(largest_batch=_largest_batch(bench)),
        wishes=Wishes(
            epochs=passes(options.epochs, len(data.train)),
            epoch_choices=EPOCH_CHOICES if options.epochs == "auto" else (),
            warmup_ratio=options.warmup_ratio,
            target_modules=options.target_modules,
            ranks=tuple(sorted(set(options.ranks))),
            learning_rates=tuple(sorted(set(options.learning_rates))),
            batch_sizes=tuple(sorted(set(options.batch_sizes))),
            metric=options.metric,
            margin=options.margin or default_margin(options.metric, len(data.labels)),
            seed=options.seed,
            regularise=options.regularise,
            tune_targets=options.tune_targets,
        ),
    )


def _largest_batch(bench: Workbench) -> int:
    """Rows per step that fit: any number where one micro-batch does, since batches are cut into those."""
    return _LARGEST_BATCH if bench.limits.fits([default_recipe()]) else 1
