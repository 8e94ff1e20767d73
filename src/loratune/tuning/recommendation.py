"""What to expect before anything is trained: profiles of rows and model, the prior, and a probe where it is wanted.

Reads the weights only for what they alone can tell: the base model's NLL, and the probe.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from loratune.data.survey import check_embeddings
from loratune.engine.probe import guessing_loss
from loratune.errors import InputError, LoratuneError, ModelError
from loratune.files.paths import user_path
from loratune.maths.laws import GUIDE, GuideRanges
from loratune.maths.prior import recommend as prior
from loratune.maths.prior import task_of
from loratune.model.device import device_memory, pick_device
from loratune.model.profile import profile_from_config
from loratune.model.source import locate
from loratune.model.tokenizer import load_tokenizer
from loratune.runners.runner import BaseLossJob, BaseLossMeasured, Probed, ProbeJob, only
from loratune.runners.spec import model_cache, read_rows
from loratune.tuning.experience import Experience, gather
from loratune.tuning.options import RecommendOptions, data_options
from loratune.tuning.workbench import Workbench, open_workbench, with_survey
from loratune.values import (
    ALL_LINEAR,
    BaseLoss,
    Classifier,
    DataProfile,
    ModelProfile,
    Probe,
    Recommendation,
)
from loratune.values.plain import finite, to_plain

PROBE_SECONDS = 90.0
UNVALIDATED = (
    "The laws of rank and learning rate were measured on causal language models; for classifiers with a trained head "
    "they are not validated: on one encoder the best learning rates were 2.4 to 6 times the law's, and small ranks "
    "were better at their own (docs/classification.md). Let tune measure."
)
_LOSS_SECONDS = 8.0
_LARGEST_ON_CPU = 1_000_000_000
"""Parameters up to which the weights are read for the base model's NLL alone, without a GPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recommended:
    """The prior, and the facts that set it."""

    data: DataProfile
    model: ModelProfile
    recommendation: Recommendation
    guide: GuideRanges
    """What the published guide says for this kind of task."""
    probe: Probe | None = None
    without_probe: Recommendation | None = None
    """The same before the probe, to see what it was worth."""
    notes: tuple[str, ...] = ()
    """What earlier studies brought, and what could not be measured."""
    data_notes: tuple[str, ...] = ()
    """What is unusual about the model, and how the rows were read."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; numbers that are not finite as None."""
        before = self.without_probe
        document: dict[str, Any] = finite(
            {
                "recommendation": to_plain(self.recommendation),
                "data": self.data.to_dict(),
                "model": {
                    "name": self.model.name,
                    "family": self.model.family,
                    "parameters": self.model.parameters,
                    "parameters_per_rank": self.model.parameters_per_rank,
                },
                "guide": to_plain(self.guide),
                "probe": to_plain(self.probe),
                "without_probe": to_plain(before),
                "notes": self.notes,
                "data_notes": self.data_notes,
            }
        )
        return document


def recommended(options: RecommendOptions) -> Recommended:
    """Profiles and prior, with a probe where that is asked for. Raises `InputError` for wrong input."""
    if not options.kind.has_laws:
        raise InputError(
            f"recommend rests on laws that were measured on completions, got --task {options.task}; see what would be "
            f"measured by `loratune plan --task {options.task}`."
        )
    experience = gather(options)
    with _subject(options) as subject:
        notes = [*experience.notes, *([subject.reason] if subject.reason else [])]
        bench = subject.bench
        if bench is None:
            return _from_prior(subject, experience, notes)
        lost = only(bench.runner.run([BaseLossJob(seconds=_LOSS_SECONDS, seed=options.seed)]))
        assert isinstance(lost, BaseLossMeasured)
        # a classifier's head is random at first: no loss of it says that the rows do not fit
        guessing = inf if bench.profile.outputs else guessing_loss(bench.profile.vocabulary)
        subject = replace(subject, data=_with_loss(subject.data, lost.loss, guessing))
        before = _from_prior(subject, experience, notes)
        if not options.probe:
            return before
        expected = before.recommendation
        job = ProbeJob(
            r=round(expected.r.value),
            lora_alpha=expected.lora_alpha.value,
            seconds=PROBE_SECONDS,
            seed=options.seed,
        )
        measured = only(bench.runner.run([job]))
        assert isinstance(measured, Probed)
    after = _from_prior(subject, experience, notes, measured.probe)
    return replace(after, probe=measured.probe, without_probe=expected)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Subject:
    """What is recommended for."""

    data: DataProfile
    model: ModelProfile
    notes: tuple[str, ...]
    """Notes on model and rows."""
    bench: Workbench | None = None
    reason: str = ""
    """Why there is no workbench: the weights are not read."""


def _from_prior(
    subject: _Subject, experience: Experience, notes: list[str], probe: Probe | None = None
) -> Recommended:
    data, model = subject.data, subject.model
    assert data.survey is not None
    found = prior(data, model, dataset=experience.dataset, tasks=experience.tasks, probe=probe)
    return Recommended(
        data=data,
        model=model,
        recommendation=found,
        guide=GUIDE[data.survey.kind],
        notes=(
            *([UNVALIDATED] if model.outputs else []),
            *experience.of_ledger(task_of(data, model, dataset=experience.dataset)),
            *notes,
        ),
        data_notes=subject.notes,
    )


@contextmanager
def _subject(options: RecommendOptions) -> Iterator[_Subject]:
    """Profiles of data and model; the workbench where the weights can be read, else why they are not."""
    reason = "" if options.probe else _why_not_weights(options)
    if not reason:
        with open_workbench(options, targets=ALL_LINEAR, ranks=(), epochs=1.0, surveyed=True) as bench:
            yield _Subject(data=bench.data.profile, model=bench.profile, notes=bench.notes, bench=bench)
        return
    tokenizer = load_tokenizer(options.model, cache=model_cache(), classifies=options.kind.has_answers)
    with TemporaryDirectory(prefix="loratune-") as folder:
        data = read_rows(options.model, data_options(options), tokenizer, Path(folder))
        model = _profile(options, data.classifier)
        check_embeddings(data, model.vocabulary, tokenizer)
        profile = with_survey(data, tokenizer, options.seed).profile
    yield _Subject(
        data=profile,
        model=model,
        notes=(*model.notes, *data.notes),
        reason=f"The base model's NLL was not measured: {reason}.",
    )


def _profile(options: RecommendOptions, classifier: Classifier | None = None) -> ModelProfile:
    return profile_from_config(
        options.model,
        dtype=options.dtype,  # type: ignore[arg-type]
        device=options.device,
        classifier=classifier,
    )


def _why_not_weights(options: RecommendOptions) -> str:
    """Why reading the weights would fail or take long; empty where they can be read. Wrong models raise later."""
    if not user_path(options.model).exists():
        return "the model is a hub name, whose weights are downloaded only for --probe"
    try:
        source = locate(options.model)
    except ModelError as error:
        return str(error).partition(";")[0]
    if source.gguf is not None:
        return ""  # reading its configuration takes as long as reading its weights
    try:
        profile = _profile(options, Classifier() if options.kind.has_answers else None)
        device = pick_device(options.device)
    except LoratuneError:
        return ""  # reported where everything is opened
    if device.type == "cpu" and profile.parameters > _LARGEST_ON_CPU:
        return f"{profile.parameters / 1e9:.1f}B parameters take long on a CPU; --probe does it"
    if profile.parameters * profile.bytes_per_parameter > device_memory(device):
        return f"its weights do not fit in the memory of {device}"
    return ""


def _with_loss(data: DataProfile, loss: BaseLoss, guessing: float) -> DataProfile:
    """The profile with the base model's NLL, and a warning where that is worse than guessing."""
    assert data.survey is not None
    warnings = data.survey.warnings
    if loss.low > guessing:
        warnings = (
            *warnings,
            f"the base model's NLL, {loss.nll:.2f} nats per token, is above ln V = {guessing:.2f}, that of guessing: "
            "template, tokenizer or mask do not fit this model; check the prompt template and --model",
        )
    return replace(data, survey=replace(data.survey, base_loss=loss, warnings=warnings))
