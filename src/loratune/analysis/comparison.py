"""The models that the final run compares, with their scores on validation and test rows. Trains and decides nothing."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loratune.lora.layout import Adapter
from loratune.runners.runner import AdapterFile
from loratune.values import TrialResult


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitScores:
    """A model on a split."""

    metrics: dict[str, float]
    example_nll: npt.NDArray[np.float64]
    """[rows] nats, summed over each row's supervised tokens."""
    example_scores: dict[str, npt.NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True, eq=False)
class FinalModel:
    """One model of the comparison; the base model has neither adapter nor result."""

    validation: SplitScores | None
    test: SplitScores
    adapter: Adapter | None = None
    file: AdapterFile | None = None
    """Where the adapter is while the final run lasts."""
    result: TrialResult | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Final:
    """The comparison of the final run."""

    recommended: FinalModel
    default_recipe: FinalModel | None
    """None where it diverged or was not asked for."""
    base_model: FinalModel
    before: float
    """NLL of the base model on the rows that early stopping looked at."""
    notes: tuple[str, ...] = ()

    @property
    def adapter(self) -> Adapter:
        assert self.recommended.adapter is not None
        return self.recommended.adapter
