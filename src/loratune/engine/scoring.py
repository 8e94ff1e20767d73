"""From what a model gave on rows to the values of all metrics, with texts where the user's own metric reads them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from loratune.data.table import TokenTable
from loratune.data.turns import last_turns
from loratune.engine.evaluate import Evaluation
from loratune.metrics import NLL, Metric, Needs, Outputs, Rows, measure


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scoring:
    """What is measured of an evaluation: the built-in metrics, as far as it allows them, and one of the user's."""

    metric: Metric = NLL
    tokenizer: PreTrainedTokenizerBase | None = None
    """Must be there where the metric reads texts and rows have no labels."""
    labels: tuple[str, ...] = ()
    """The classes' words, where rows are labelled."""
    max_new_tokens: int = 0
    """Generated tokens of a row at most; 0 where the metric needs no generated text."""

    @property
    def generates(self) -> bool:
        """Whether the metric is one of generated text."""
        return self.metric.needs is Needs.GENERATION

    @property
    def keeps_tokens(self) -> bool:
        """Whether evaluations must keep the most likely tokens."""
        return self.metric.needs is Needs.TEXT and not self.labels

    @property
    def asks_labels(self) -> bool:
        """Whether evaluations must score labels for the metric."""
        return self.metric.asks_labels(bool(self.labels))

    def measure(
        self, evaluation: Evaluation, table: TokenTable
    ) -> tuple[Mapping[str, float], Mapping[str, npt.NDArray[np.float64]]]:
        """Values by metric name, and scores [rows] by column; the rows are those of `table`.

        Raises `InputError` where the user's metric fails.
        """
        return measure(self.outputs(evaluation, table), self.metric)

    def outputs(self, evaluation: Evaluation, table: TokenTable) -> Outputs:
        """What metrics are given."""
        texts, references = self._texts(evaluation, table)
        return Outputs(
            nll=evaluation.example_nll,
            exact_match=evaluation.exact_match,
            rows=replace(table_rows(table), weights=evaluation.counts.astype(np.float64)),
            predictions=evaluation.predictions,
            texts=texts,
            references=references,
            margins=evaluation.margins,
            generated=None if evaluation.generated is None else self.decoded(evaluation.generated),
        )

    def references(self, table: TokenTable) -> list[str]:
        """[rows] what generated text is compared with: each row's last answer."""
        return self.decoded([turn.answer for turn in last_turns(table)])

    def _texts(
        self, evaluation: Evaluation, table: TokenTable
    ) -> tuple[Sequence[str] | None, Sequence[str] | None]:
        """Predictions and references [rows], where the metric reads them and the evaluation has them."""
        if evaluation.generated is not None:
            return None, self.references(table)
        if self.metric.needs is not Needs.TEXT:
            return None, None
        if self.labels:
            truth = table.row_truth
            if evaluation.predictions is None or truth is None:
                return None, None
            return self._words(evaluation.predictions), self._words(truth)
        if evaluation.tokens is None:
            return None, None
        predicted = np.split(evaluation.tokens, np.cumsum(table.supervised_counts)[:-1])
        true = [tokens[learned] for tokens, learned in map(table.row, range(len(table)))]
        return self.decoded(predicted), self.decoded(true)

    def _words(self, classes: npt.NDArray[Any]) -> list[str]:
        """Names of the classes; where a row has several labels, those that hold, with commas between them."""
        if classes.ndim > 1:
            return [", ".join(self.labels[i] for i in np.flatnonzero(row)) for row in classes]
        return [self.labels[i] for i in classes]

    def decoded(self, rows: Sequence[npt.NDArray[np.int32]]) -> list[str]:
        """Texts of tokens, without special tokens and the spaces around. Needs a tokenizer."""
        assert self.tokenizer is not None
        decode = self.tokenizer.decode
        return [str(decode(row.tolist(), skip_special_tokens=True)).strip() for row in rows]


def table_rows(table: TokenTable) -> Rows:
    """What metrics know of the rows of a table; the same for every model."""
    return Rows(weights=table.weights, labels=table.row_truth)
