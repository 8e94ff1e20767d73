"""Frozen dataclasses that the layers exchange. They know nothing of torch, files or the command line."""

from loratune.values.analysis import Cut, CutPoint, LayerSpectrum, Truncation
from loratune.values.context import NLL_MARGIN, PASSES_PER_LABELLING, Pace, SearchContext
from loratune.values.decision import Decision, Evidence, PlannedStage, SearchPlan, StageSummary
from loratune.values.hyperparameters import ALL_LINEAR, HyperParameters, default_recipe
from loratune.values.profile import (
    Absorbed,
    BaseLoss,
    DataProfile,
    ModelProfile,
    NearDuplicates,
    NoiseScale,
    Probe,
    RateTest,
    Recommendation,
    Suggested,
    Survey,
    TaskKind,
)
from loratune.values.records import Optimum, PromptFormat, PromptKind, StudiedTask, TrainingRecord
from loratune.values.trial import CurvePoint, Stage, Trial, TrialResult, TrialState

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
