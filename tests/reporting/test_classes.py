"""Scores of classes and the matrix of mistakes, against numbers counted by hand."""

import pytest

from loratune.reporting.held_out import class_scores, matrix, mistakes
from loratune.values.analysis import Confusion


def pairs(*found: tuple[int, int, int]) -> tuple[Confusion, ...]:
    return tuple(Confusion(true=true, predicted=taken, rows=rows) for true, taken, rows in found)


LABELS = ("a", "b", "c")
FOUND = pairs((0, 0, 6), (0, 1, 2), (1, 1, 9), (1, 0, 1), (2, 0, 4))
BASE = pairs((0, 0, 8), (1, 0, 10), (2, 2, 1), (2, 0, 3))


def test_scores_by_hand_the_worst_first() -> None:
    c, a, b = class_scores(LABELS, FOUND, BASE)
    assert (c.label, c.rows, c.precision, c.recall, c.f1, c.base_recall) == ("c", 4, None, 0.0, 0.0, 0.25)
    assert (a.label, a.rows, a.precision, a.recall, a.base_recall) == ("a", 8, 6 / 11, 6 / 8, 1.0)
    assert a.f1 == pytest.approx(12 / 19)
    assert (b.precision, b.recall, b.base_recall) == (9 / 11, 0.9, 0.0)


def test_the_whole_matrix_where_it_fits() -> None:
    whole = matrix(LABELS, FOUND)
    assert whole.complete
    assert whole.labels == LABELS
    assert whole.counts == ((6, 2, 0), (1, 9, 0), (4, 0, 0))


def test_of_many_classes_those_with_most_mistakes_and_the_others_in_one_column() -> None:
    part = matrix(LABELS, FOUND, shown=2)
    assert not part.complete
    assert part.labels == ("a", "c")  # 7 and 4 mistakes, b has 3
    assert part.counts == ((6, 0, 2), (4, 0, 0))


def test_the_most_frequent_mistakes() -> None:
    assert mistakes(LABELS, FOUND, most=2) == [("c", "a", 4), ("a", "b", 2)]
