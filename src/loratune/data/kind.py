"""What a dataset teaches, guessed from its shape and a sample of its texts, with the reason. Knows no tokens."""

import re
from collections.abc import Sequence
from statistics import median

import numpy as np
import numpy.typing as npt

from loratune.values import TaskKind

Texts = Sequence[tuple[str, str]]
"""(what is given, what is learnt) of some rows."""

_WORKING = re.compile(
    r"\d\s*[-+*/×÷]\s*\$?\d[^\n]*=|####|\\boxed|<think>|\bstep \d|\btherefore\b", re.IGNORECASE
)
"""Signs of worked solutions: arithmetic with its result, the marks of usual answers, steps, conclusions."""
_WORD = re.compile(r"\w+")
_WORKED_SHARE = 0.5
_COPIED_SHARE = 0.75
_FOREIGN_SHARE = 0.1
_PARALLEL = 0.8
"""Correlation of the two sides' lengths from which they are taken for translations."""
_FEWEST_FOR_PARALLEL = 10


def guess_kind(shape: str, labels: int, texts: Texts) -> tuple[TaskKind, str]:
    """The kind of task and why; `texts` are some training rows."""
    if labels:
        return TaskKind.CLASSIFICATION, f"every completion is one of {labels} labels"
    if shape == "text":
        return TaskKind.DOMAIN_TEXT, "plain text, all of it learnt"
    worked = float(np.mean([bool(_WORKING.search(learned)) for _, learned in texts]))
    if worked >= _WORKED_SHARE:
        return TaskKind.REASONING, f"{worked:.0%} of the completions show their working"
    sides = [(_words(given), _words(learned)) for given, learned in texts]
    copied = median(_share_within(learned, given) for given, learned in sides)
    shorter = median(len(learned) / max(len(given), 1) for given, learned in sides)
    if copied >= _COPIED_SHARE and shorter <= 0.5:
        return (
            TaskKind.EXTRACTION,
            f"in the median row {copied:.0%} of the completion's words stand in its prompt, which is "
            f"{1 / max(shorter, 1e-3):.0f} times as long",
        )
    parallel = _parallel(texts)
    if copied <= _FOREIGN_SHARE and parallel >= _PARALLEL and 0.4 <= shorter <= 2.5:
        return (
            TaskKind.TRANSLATION,
            f"prompt and completion are as long as each other (correlation {parallel:.2f}) and share hardly a word",
        )
    return TaskKind.INSTRUCTION, "prompts with free answers that neither copy them nor show a working"


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _share_within(words: Sequence[str], given: Sequence[str]) -> float:
    known = set(given)
    return sum(word in known for word in words) / len(words) if words else 0.0


def _parallel(texts: Texts) -> float:
    """Correlation of the sides' lengths in characters; 0 for few rows or a side of constant length."""
    lengths = np.array([(len(given), len(learned)) for given, learned in texts], np.float64)
    if len(lengths) < _FEWEST_FOR_PARALLEL or (lengths.std(axis=0) == 0).any():
        return 0.0
    matrix: npt.NDArray[np.float64] = np.atleast_2d(np.corrcoef(lengths.T))
    return float(matrix[0, 1])
