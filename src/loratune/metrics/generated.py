"""Metrics of the text that a model writes by itself, greedily, after each row's prompt: against the row's completion.

A row's score lies in [0, 1], and the value is the mean over rows, so that two models are compared row by row. (A corpus
BLEU is no mean over rows and has other values.) Libraries are imported when the first row is scored.
"""

import json
import re
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from loratune.errors import InputError
from loratune.metrics.base import Floats, Metric, Outputs, UnscorableRow
from loratune.metrics.info import POINTS, MetricInfo, Needs
from loratune.metrics.names import REGEX

_EXTRA = "pip install 'loratune[generation]'"


def _info(name: str, title: str, *, counts_rows: bool = False) -> MetricInfo:
    return MetricInfo(
        name=name, title=title, unit=POINTS, larger_is_better=True, margin=1.0, counts_rows=counts_rows
    )


class GeneratedText(Metric):
    """Scores each generated text against its reference, both without special tokens and the spaces around."""

    needs = Needs.GENERATION

    def scores(self, outputs: Outputs) -> Floats | None:
        if outputs.generated is None or outputs.references is None:
            return None
        pairs = zip(outputs.generated, outputs.references, strict=True)
        return np.array([self.score(text, reference) for text, reference in pairs], np.float64)

    @abstractmethod
    def score(self, text: str, reference: str) -> float:
        """The score of one row, 0 to 1."""


class GeneratedMatch(GeneratedText):
    """Share of the rows whose generated text is the reference."""

    info = _info("generated_match", "exact match of the generated text", counts_rows=True)

    def score(self, text: str, reference: str) -> float:
        return float(text == reference)


class JsonMatch(GeneratedText):
    """Share of the rows whose generated text is JSON of the same value: the order of keys and spaces are free."""

    info = _info("json_match", "JSON equality of the generated text", counts_rows=True)

    def score(self, text: str, reference: str) -> float:
        try:
            return float(_canonical(text) == _canonical(reference))
        except (ValueError, RecursionError):
            return 0.0

    def check(self, references: Sequence[str]) -> tuple[str, ...]:
        """Raises `UnscorableRow` for the first reference that is no JSON."""
        for row, reference in enumerate(references):
            try:
                _canonical(reference)
            except (ValueError, RecursionError) as error:
                said = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
                raise UnscorableRow(row, f"completions that are JSON ({said})", "mend the row") from None
        return ()


class Regex(GeneratedText):
    """Share of the rows where the last match's first group is the reference's: as text, or as a number.

    `regex:#### (\\S+)` takes `1,000` and `1000.0` for the same answer.
    """

    def __init__(self, name: str) -> None:
        """`name`: `regex:` and the expression. Raises `InputError` where it is none or has no group."""
        pattern = name.removeprefix(REGEX)
        try:
            self._expression = re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise InputError(
                f"--metric {REGEX}… must hold a regular expression, got {pattern!r} ({error}); give for example "
                f"{_EXAMPLE}."
            ) from None
        if not self._expression.groups:
            raise InputError(
                f"--metric {REGEX}… must hold an expression with a group in parentheses, which is compared, got "
                f"{pattern!r}; give for example {_EXAMPLE}."
            )
        self.info = _info(name, f"match of {pattern}", counts_rows=True)

    def found(self, text: str) -> str | None:
        """The first group of the last match, the answer of a text that thinks aloud; None where there is none."""
        matches = [match.group(1) for match in self._expression.finditer(text)]
        return None if not matches or matches[-1] is None else matches[-1].strip()

    def score(self, text: str, reference: str) -> float:
        ours, true = self.found(text), self.found(reference)
        if ours is None or true is None:
            return 0.0
        return float(ours == true or (_number(true) is not None and _number(ours) == _number(true)))

    def check(self, references: Sequence[str]) -> tuple[str, ...]:
        """Raises `InputError` where no reference has a match."""
        without = [reference for reference in references if self.found(reference) is None]
        if references and len(without) == len(references):
            raise InputError(
                f"--metric {self.name} must match the completions, but none of {len(references)} has a match, the "
                f"first is {' '.join(references[0].split())[:60]!r}; give an expression that matches, "
                r"for example 'regex:(\S+)\s*$' for the last word."
            )
        if not without:
            return ()
        return (
            f"--metric {self.name}: {len(without)} of {len(references)} held-out completions have no match and count "
            "as wrong, whatever is generated.",
        )


class LibraryScore(GeneratedText):
    """A score of one row by a library of the extra `generation`."""

    def __init__(
        self, info: MetricInfo, package: str, load: Callable[[], Callable[[str, str], float]]
    ) -> None:
        self.info = info
        self._package, self._load = package, load

    @cached_property
    def _score(self) -> Callable[[str, str], float]:
        try:
            return self._load()
        except ImportError:
            raise InputError(
                f"--metric {self.name} needs the package {self._package}, which is not installed; {_EXTRA}."
            ) from None

    def score(self, text: str, reference: str) -> float:
        return min(1.0, max(0.0, self._score(text, reference)))

    def check(self, references: Sequence[str]) -> tuple[str, ...]:
        """Raises `InputError` where the package is not installed."""
        self.score("", "")
        return ()


def rouge(kind: str) -> LibraryScore:
    """F1 of `rouge1`, `rouge2` or `rougeL`, words as they are (no stemmer)."""

    def load() -> Callable[[str, str], float]:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer([kind], use_stemmer=False)
        return lambda text, reference: float(scorer.score(reference, text)[kind].fmeasure)

    title = f"ROUGE-{kind.removeprefix('rouge')}"
    return LibraryScore(_info(kind, title), "rouge-score", load)


def bleu() -> LibraryScore:
    """sacrebleu's sentence BLEU, with no longer n-grams than the row has."""

    def load() -> Callable[[str, str], float]:
        from sacrebleu.metrics import BLEU

        scorer = BLEU(effective_order=True)
        return lambda text, reference: float(scorer.sentence_score(text, [reference]).score) / 100

    return LibraryScore(_info("bleu", "sentence BLEU"), "sacrebleu", load)


def chrf() -> LibraryScore:
    """sacrebleu's chrF2 of each row."""

    def load() -> Callable[[str, str], float]:
        from sacrebleu.metrics import CHRF

        scorer = CHRF()
        return lambda text, reference: float(scorer.sentence_score(text, [reference]).score) / 100

    return LibraryScore(_info("chrf", "chrF"), "sacrebleu", load)


_EXAMPLE = r"'regex:#### (\S+)'"


def _number(text: str) -> float | None:
    try:
        return float(text.replace(",", "").rstrip("."))
    except ValueError:
        return None


def _canonical(text: str) -> str:
    """Equal for equal JSON values; `true` is no 1, 1.0 is one. Raises `ValueError` where the text is no JSON."""
    value = json.loads(text, parse_constant=_refuse, parse_float=_float)
    return json.dumps(value, sort_keys=True)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _float(text: str) -> float | int:
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < 2**53 else value
