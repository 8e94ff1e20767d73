"""The protocol of whatever trains and measures: jobs go in, results come out, and files hold what is large.

A runner may be this process, a table of measured results, a clock, or a machine elsewhere. Jobs and results are
frozen values that can be pickled; a result refers to an adapter by its folder and never holds a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from loratune.costs.calibration import Calibration
from loratune.costs.generation import Generation
from loratune.engine.cutting import Cuts, CutScores
from loratune.engine.evaluate import Evaluation
from loratune.lora.spectrum import Strengths
from loratune.values import BaseLoss, HyperParameters, NoiseScale, Probe, Trial, TrialResult

Split = Literal["train", "validation", "test"]
Text = Literal["supervised", "whole", "without last"]
"""What of a row counts: what is learnt; all but its first and last token; what is learnt but for its last token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Something to be done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialJob(Job):
    """Train a trial of the search."""

    trial: Trial


@dataclass(frozen=True, kw_only=True, slots=True)
class FinalJob(Job):
    """Train with early stopping, and keep the adapter; those of one call train side by side."""

    trial: Trial
    patience: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationJob(Job):
    """Measure a few steps of a recipe."""

    recipe: HyperParameters
    pack_size: int | None = None
    """Trials of a pack; None: what suits the device."""
    least_rate: float = 0.0
    """Tokens per second below which nothing more need be measured: a far slower first step raises `TooSlow`."""
    dora: bool = False
    """Whether a DoRA trial is measured too, beside a plain one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseJob(Job):
    """Measure the gradient noise scale on at most `share` of the rows of a run of `epochs`."""

    r: int
    lora_alpha: float
    share: float
    epochs: float
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseLossJob(Job):
    """Evaluate the base model on training rows drawn by `seed`, until the time is over."""

    seconds: float
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeJob(Job):
    """Measure gradient noise, absorbed bits and learning rates at one rank and alpha."""

    r: int
    lora_alpha: float
    seconds: float
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class WritingJob(Job):
    """Measure what a step of writing text takes, on the base model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterFile:
    """An adapter in a folder of PEFT's format."""

    folder: Path
    hyper_parameters: HyperParameters


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoringJob(Job):
    """Evaluate adapters (None: the bare base) together on the rows of a split."""

    adapters: tuple[AdapterFile | None, ...]
    split: Split
    labels: bool = False
    """Whether to predict labels too."""
    max_new_tokens: int = 0
    """Most tokens of the text that is generated after each prompt; 0: none."""
    rows: int | None = None
    """Number of rows, the same ones every time; None: all. Of the validation split only."""
    chosen: tuple[int, ...] | None = None
    """Just these rows of the split; None: as `rows` says."""
    text: Text = "supervised"


@dataclass(frozen=True, kw_only=True, slots=True)
class CutsJob(Job):
    """Cut an adapter to lower ranks and evaluate all cuts together on validation rows."""

    adapter: AdapterFile
    trial: Trial
    """Whose it is."""
    cuts: Cuts
    rows: tuple[int, ...]
    labels: bool = False
    """Whether to predict labels too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditJob(Job):
    """Measure the matrices of an adapter beside the layers that they change."""

    adapter: AdapterFile


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialDone:
    """Result of a `TrialJob` or a `FinalJob`."""

    job: TrialJob | FinalJob
    result: TrialResult
    adapter: Path | None = None
    """The folder that holds it, where it was kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibrated:
    """Result of a `CalibrationJob`."""

    job: CalibrationJob
    calibration: Calibration


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseMeasured:
    """Result of a `NoiseJob`."""

    job: NoiseJob
    noise: NoiseScale | None
    """None where the rows were too few."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseLossMeasured:
    """Result of a `BaseLossJob`."""

    job: BaseLossJob
    loss: BaseLoss


@dataclass(frozen=True, kw_only=True, slots=True)
class Probed:
    """Result of a `ProbeJob`."""

    job: ProbeJob
    probe: Probe


@dataclass(frozen=True, kw_only=True, slots=True)
class WritingMeasured:
    """Result of a `WritingJob`."""

    job: WritingJob
    generation: Generation


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """Result of a `ScoringJob`."""

    job: ScoringJob
    evaluations: tuple[Evaluation, ...]
    """Evaluations in the order of the job's adapters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CutsScored:
    """Result of a `CutsJob`."""

    job: CutsJob
    found: CutScores


@dataclass(frozen=True, kw_only=True, slots=True)
class Audited:
    """Result of an `AuditJob`."""

    job: AuditJob
    strengths: Strengths


Done = (
    TrialDone
    | Calibrated
    | NoiseMeasured
    | BaseLossMeasured
    | Probed
    | WritingMeasured
    | Evaluated
    | CutsScored
    | Audited
)

More = Callable[[Sequence[TrialResult], Sequence[Trial]], Sequence[Trial]]
"""Gives further trials from the results of this call so far and the trials still running."""


class Runner(Protocol):
    """Does the jobs of a driver. `testing.runners.RunnerContract` says what each must keep."""

    @property
    def late(self) -> bool:
        """Whether a clock has run out, or the user asked to stop: no trial is begun any more, and those that run end
        without a result.
        """

    def run(self, jobs: Sequence[Job], more: More | None = None) -> Iterator[Done]:
        """Do all jobs, and yield each one's result as soon as it is there.

        `more` is asked for further trials while some of this call still run and there is room for others. What
        was yielded may be relied on even if the runner dies before the next result. To be closed where it is not
        run to its end.
        """


def only(results: Iterator[Done]) -> Done:
    """The result of a single job."""
    (found,) = results
    return found
