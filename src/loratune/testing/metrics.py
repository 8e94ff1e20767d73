"""The contract of a metric: what search, final run and report rely on.

class TestMine(MetricContract):
    metric = mine  # a function, or what `loratune.metrics.base` made of it
"""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from math import isclose, isfinite
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

from loratune.maths.noninferiority import SeedNoise
from loratune.metrics import NLL, Metric, MetricInfo, Needs, Outputs, Rows, as_metric
from loratune.metrics.base import Floats
from loratune.values import Trial, TrialResult, default_recipe

_NO_SEEDS = SeedNoise(variance=0.0, degrees=np.inf)


class MetricContract:
    """Tests of one metric, on made-up models of known quality."""

    metric: ClassVar[Any]
    references: ClassVar[Sequence[str]] = ("a red cat", "two blue dogs", "one", "green birds sing at dawn")
    """Completions that the metric can score, at least two different ones. A wrong prediction is another row's."""
    rows: ClassVar[int] = 48

    @cached_property
    def subject(self) -> Metric:
        given = inspect.getattr_static(type(self), "metric")  # a function would be bound as a method
        return as_metric(given.__func__ if isinstance(given, staticmethod) else given)

    @property
    def known(self) -> Rows:
        """What is known of the rows."""
        classes = np.arange(self.rows) % len(self.references)
        numbers = self.subject.needs is Needs.NUMBERS
        labels = classes.astype(np.float64) if numbers else classes
        return Rows(weights=(1 + classes % 3).astype(np.float64), labels=labels)

    def outputs(self, quality: float, seed: int = 0) -> Outputs:
        """Outputs of a model that has this share of the rows right; 1: perfect."""
        rows, random = self.known, np.random.default_rng(seed)
        assert rows.labels is not None
        assert rows.weights is not None
        right = np.arange(self.rows) < round(quality * self.rows)
        random.shuffle(right)
        predicted = np.where(right, rows.labels, (rows.labels + 1) % len(self.references))
        nll = rows.weights * np.where(right, 0.0, random.uniform(1, 2, self.rows))
        return Outputs(
            nll=nll,
            exact_match=right,
            rows=rows,
            predictions=predicted,
            texts=[self.references[int(i)] for i in predicted],
            references=[self.references[int(i)] for i in rows.labels],
            margins=self._margins(right, random),
            generated=[self.references[int(i)] for i in predicted],
        )

    def _margins(self, right: npt.NDArray[np.bool_], random: np.random.Generator) -> Floats | None:
        """Rows have these where they are pairs, and nothing but these and the loss is then measured."""
        if self.subject.needs is not Needs.PREFERENCES:
            return None
        return np.where(right, 1.0, -1.0) * random.uniform(1, 2, self.rows)

    def scored(self, quality: float, seed: int = 0) -> Floats:
        """[rows] scores of such a model."""
        scores = self.subject.scores(self.outputs(quality, seed))
        assert scores is not None, "the metric must score rows of which everything is known"
        return scores

    def value(self, quality: float, seed: int = 0) -> float:
        return self.subject.value(self.scored(quality, seed), self.known)

    def test_every_row_has_a_finite_score(self) -> None:
        for quality in (0.0, 0.5, 1.0):
            scores = self.scored(quality)
            assert scores.shape == (self.rows,)
            assert np.isfinite(scores).all()
            assert isfinite(self.value(quality))

    def test_a_row_scores_the_same_whatever_rows_are_beside_it(self) -> None:
        whole, part = self.outputs(0.5), np.arange(self.rows)[::-3]
        assert whole.texts is not None
        assert whole.references is not None
        assert whole.predictions is not None
        assert whole.rows.weights is not None
        assert whole.rows.labels is not None
        assert whole.generated is not None
        some = Outputs(
            nll=whole.nll[part],
            exact_match=whole.exact_match[part],
            rows=Rows(weights=whole.rows.weights[part], labels=whole.rows.labels[part]),
            predictions=whole.predictions[part],
            texts=[whole.texts[i] for i in part],
            references=[whole.references[i] for i in part],
            margins=None if whole.margins is None else whole.margins[part],
            generated=[whole.generated[i] for i in part],
        )
        scores = self.subject.scores(some)
        assert scores is not None
        assert np.allclose(scores, self.scored(0.5)[part])

    def test_the_same_outputs_score_the_same(self) -> None:
        assert np.array_equal(self.scored(0.5), self.scored(0.5))

    def test_perfect_predictions_are_the_best(self) -> None:
        loss = self.subject.info.loss
        best = loss(self.value(1.0))
        assert all(best < loss(self.value(quality)) for quality in (0.0, 0.3, 0.7, 0.95))

    def test_the_direction_is_that_of_the_comparison(self) -> None:
        good, bad = self.value(0.9), self.value(0.3, seed=1)
        assert (good > bad) is self.subject.info.larger_is_better
        assert self.compared(self.scored(0.9), self.scored(0.3, seed=1)) < 0

    def test_a_difference_is_one_of_losses(self) -> None:
        deciding = NLL if self.subject.info.by_nll else self.subject
        one, other = self.scored(0.6), self.scored(0.4, seed=1)
        losses = [deciding.info.loss(deciding.value(scores, self.known)) for scores in (one, other)]
        assert isclose(self.compared(one, other), losses[0] - losses[1], rel_tol=1e-9, abs_tol=1e-12)

    def test_exchanging_the_models_turns_the_sign(self) -> None:
        one, other = self.scored(0.6)[None], self.scored(0.4, seed=1)[None]
        there = self.subject.compare(one, other, self.known, _NO_SEEDS, 1.0)
        back = self.subject.compare(other, one, self.known, _NO_SEEDS, 1.0)
        assert isclose(there.difference, -back.difference, rel_tol=1e-9)
        assert isclose(there.standard_error, back.standard_error, rel_tol=1e-9)
        assert there.standard_error > 0

    def test_a_model_is_as_good_as_itself(self) -> None:
        runs = np.stack([self.scored(0.6), self.scored(0.5, seed=1)])
        same = self.subject.compare(runs, runs, self.known, _NO_SEEDS, 1.0)
        assert same.difference == 0
        assert same.standard_error == 0

    def test_rows_alone_make_a_variance(self) -> None:
        runs = np.stack([self.scored(0.6, seed=seed) for seed in range(3)])
        variance = self.subject.noise_of_rows(runs, self.known)
        assert isfinite(variance)
        assert variance >= 0
        assert self.subject.noise_of_rows(np.stack([runs[0], runs[0]]), self.known) == 0

    def test_the_margin_and_the_words_are_there(self) -> None:
        info = self.subject.info
        assert info.margin > 0
        assert all(text.strip() for text in (info.name, info.title, info.unit))
        assert info.unit in info.margin_text(info.margin)

    def test_a_loss_stands_for_a_value(self) -> None:
        info = self.subject.info
        values = [self.value(quality) for quality in (0.0, 0.4, 1.0)]
        assert all(isclose(info.value_at(info.loss(v)), v, rel_tol=1e-9, abs_tol=1e-9) for v in values)

    def test_a_value_can_be_read_back(self) -> None:
        info = self.subject.info
        for quality in (0.0, 0.4, 1.0):
            value, text = self.value(quality), info.text(self.value(quality))
            number = float(text.removesuffix(" %"))
            assert isclose(number, info.scale * value, rel_tol=1e-3, abs_tol=0.05), text
        assert info.text(None) == info.text(float("nan")) == "–"

    def test_a_report_can_be_drawn_without_the_code(self) -> None:
        kept = TypeAdapter(MetricInfo)
        assert kept.validate_json(kept.dump_json(self.subject.info)) == self.subject.info

    def test_a_result_keeps_what_comparisons_need(self) -> None:
        subject, scores = self.subject, self.scored(0.6)
        trial = Trial(hyper_parameters=default_recipe())
        result = TrialResult(asked=trial, trial=trial)
        assert subject.rows_of(result) is None
        result = replace(
            result,
            nll=NLL.value(self.outputs(0.6).nll, self.known),
            example_nll=self.outputs(0.6).nll,
            metrics={subject.name: self.value(0.6)},
            example_scores={subject.column: scores},
        )
        kept, value = subject.rows_of(result), subject.of(result)
        assert kept is not None
        assert np.array_equal(kept, scores)
        assert value is not None
        assert isclose(value, self.value(0.6))
        assert isfinite(subject.loss(result))

    def test_it_is_not_measured_without_what_it_needs(self) -> None:
        bare = replace(
            self.outputs(0.6), predictions=None, texts=None, references=None, margins=None, generated=None
        )
        assert (self.subject.scores(bare) is not None) is (self.subject.needs is Needs.LIKELIHOOD)

    def compared(self, candidate: Floats, reference: Floats) -> float:
        """Loss of the candidate minus that of the reference, one run each."""
        found = self.subject.compare(candidate[None], reference[None], self.known, _NO_SEEDS, 1.0)
        return found.difference
