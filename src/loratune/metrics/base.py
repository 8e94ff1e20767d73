"""A metric: scores of each row, the value that they make up, and how two models' scores are compared."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
import numpy.typing as npt

from loratune.errors import InputError
from loratune.maths.noninferiority import Comparison, SeedNoise, compare_scores, row_variance
from loratune.metrics.info import MetricInfo, Needs
from loratune.values import PASSES_PER_LABELLING, TrialResult

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Rows:
    """What is known of the scored rows; the same for every model."""

    weights: Floats | None = None
    """[rows] supervised tokens."""
    labels: npt.NDArray[Any] | None = None
    """[rows] index of the true label; of a classifier also [rows, labels] 1 where one holds, or [rows] the true number
    (floating)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Outputs:
    """What one model gave on rows; a metric scores what of it there is."""

    nll: Floats
    """[rows] sum over the row's supervised tokens, nats."""
    exact_match: npt.NDArray[np.bool_]
    """[rows] whether every supervised token is the most likely one."""
    rows: Rows
    predictions: npt.NDArray[Any] | None = None
    """[rows] index of the most likely label, or as `Rows.labels` has it; None where labels were not scored."""
    texts: Sequence[str] | None = None
    """[rows] the predictions as text; None where no metric asks for them."""
    references: Sequence[str] | None = None
    """[rows] the completions as text."""
    margins: Floats | None = None
    """[pairs] by how much the chosen answer is preferred, in nats; None where rows are no pairs. All else that is of
    rows is then of pairs."""
    generated: Sequence[str] | None = None
    """[rows] what the model writes by itself after the prompts; None where nothing was generated."""


class UnscorableRow(InputError):
    """A reference that no prediction can be scored against."""

    def __init__(self, row: int, rule: str, advice: str) -> None:
        """`row`: which of the references. `rule`: what a metric must have, `advice`: what helps."""
        super().__init__(f"row {row + 1} must have {rule}; {advice}.")
        self.row, self.rule, self.advice = row, rule, advice


class Metric(ABC):
    """One metric. Subclasses say what a row scores; the value is then its mean unless they say otherwise."""

    info: MetricInfo
    needs: Needs

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def column(self) -> str:
        """Name under which a result keeps the scores of its rows (`TrialResult.example_scores`)."""
        return self.info.column

    def asks_labels(self, labelled: bool) -> bool:
        """Whether it needs the labels of rows scored, if they are `labelled`."""
        return self.needs is Needs.LABELS or (self.needs is Needs.TEXT and labelled)

    def passes(self, labelled: bool, labelling: float = PASSES_PER_LABELLING) -> float:
        """Passes over the rows that one evaluation takes, where finding all rows' labels takes `labelling` more."""
        return 1 + (labelling if self.asks_labels(labelled) else 0)

    @abstractmethod
    def scores(self, outputs: Outputs) -> Floats | None:
        """[rows] what each row scores; None where `outputs` lacks what the metric needs."""

    def check(self, references: Sequence[str]) -> tuple[str, ...]:
        """What is odd about the completions that it will score predictions against, a sentence each.

        Raises `InputError` where it cannot, `UnscorableRow` where that is for one of them.
        """
        return ()

    def value(self, scores: Floats, rows: Rows) -> float:
        """The metric of one model, from the scores [rows] of its rows."""
        return float(scores.mean())

    def compare(
        self, candidate: Floats, reference: Floats, rows: Rows, noise: SeedNoise, margin: float
    ) -> Comparison:
        """Loss of the candidate minus that of the reference, paired by row, in the metric's unit.

        Args:
            candidate, reference: [seeds, rows] scores; the two may have different numbers of seeds.
            noise: of one run's loss. margin: both in the metric's unit.
        """
        scale = self.info.scale if self.info.larger_is_better else -self.info.scale
        return compare_scores(candidate, reference, noise, margin, scale=scale)

    def comparable(self, rows: Rows) -> bool:
        """Whether `compare` has what it needs to know of the rows."""
        return True

    def noise_of_rows(self, runs: Floats, rows: Rows) -> float:
        """Variance of one run's loss that comes from the rows; `runs` [seeds, rows] are scores, 2 seeds or more."""
        return row_variance(self.info.scale * runs, np.ones(runs.shape[1]))

    def of(self, result: TrialResult) -> float | None:
        """Its value in a result; None where it was not measured."""
        return result.metrics.get(self.name)

    def rows_of(self, result: TrialResult) -> Floats | None:
        """[rows] the scores that a result keeps; None where it keeps none."""
        return result.example_scores.get(self.column)

    def loss(self, result: TrialResult) -> float:
        """What is minimised, in the metric's unit; infinite where the trial diverged or was not scored."""
        value = self.of(result) if result.finished else None
        return inf if value is None else self.info.loss(value)

    def rows_of_all(self, results: Sequence[TrialResult]) -> Floats | None:
        """[results, rows] scores; None where one result keeps none."""
        found = [self.rows_of(result) for result in results]
        if any(scores is None for scores in found):
            return None
        return np.array(found, dtype=np.float64)
