"""Frozen dataclasses that the layers exchange. They know nothing of torch, files or the command line."""

from loratune.values.context import NLL_MARGIN, PASSES_PER_LABELLING, SearchContext
from loratune.values.evidence import Decision, Evidence, StageSummary
from loratune.values.hyperparameters import ALL_LINEAR, HyperParameters, default_recipe
from loratune.values.pace import Pace
from loratune.values.plan import PlannedStage, SearchPlan
from loratune.values.probe import Absorbed, NoiseScale, Probe, RateTest
from loratune.values.profile import (
    BaseLoss,
    DataProfile,
    ModelProfile,
    NearDuplicates,
    Recommendation,
    Suggested,
    Survey,
    TaskKind,
)
from loratune.values.studied import Optimum, StudiedTask
from loratune.values.training import PromptFormat, PromptKind, TrainingRecord
from loratune.values.trial import CurvePoint, Stage, Trial, TrialResult, TrialState
from loratune.values.truncation import Cut, CutPoint, LayerSpectrum, Truncation

__all__ = [
    "ALL_LINEAR",
    "NLL_MARGIN",
    "PASSES_PER_LABELLING",
    "Absorbed",
    "BaseLoss",
    "CurvePoint",
    "Cut",
    "CutPoint",
    "DataProfile",
    "Decision",
    "Evidence",
    "HyperParameters",
    "LayerSpectrum",
    "ModelProfile",
    "NearDuplicates",
    "NoiseScale",
    "Optimum",
    "Pace",
    "PlannedStage",
    "Probe",
    "PromptFormat",
    "PromptKind",
    "RateTest",
    "Recommendation",
    "SearchContext",
    "SearchPlan",
    "Stage",
    "StageSummary",
    "StudiedTask",
    "Suggested",
    "Survey",
    "TaskKind",
    "TrainingRecord",
    "Trial",
    "TrialResult",
    "TrialState",
    "Truncation",
    "default_recipe",
]
