"""Frozen dataclasses that the layers exchange. They know nothing of torch, files or the command line."""

from loratune.values.context import PASSES_PER_LABELLING, SearchContext
from loratune.values.evidence import Decision, Evidence, StageSummary
from loratune.values.hyperparameters import ALL_LINEAR, HyperParameters, default_recipe
from loratune.values.plan import PlannedStage, SearchPlan
from loratune.values.profile import DataProfile, ModelProfile, Recommendation, Suggested
from loratune.values.trial import LABEL_METRICS, METRICS, CurvePoint, Stage, Trial, TrialResult, TrialState
from loratune.values.truncation import Cut, CutPoint, LayerSpectrum, Truncation

__all__ = [
    "ALL_LINEAR",
    "LABEL_METRICS",
    "METRICS",
    "PASSES_PER_LABELLING",
    "CurvePoint",
    "Cut",
    "CutPoint",
    "DataProfile",
    "Decision",
    "Evidence",
    "HyperParameters",
    "LayerSpectrum",
    "ModelProfile",
    "PlannedStage",
    "Recommendation",
    "SearchContext",
    "SearchPlan",
    "Stage",
    "StageSummary",
    "Suggested",
    "Trial",
    "TrialResult",
    "TrialState",
    "Truncation",
    "default_recipe",
]
