"""Kneedle through `kneed`."""

import pytest

from loratune.maths.curves import elbow


def test_planted_knee() -> None:
    assert elbow([1, 2, 3, 4, 5, 6, 7], [10.0, 5.0, 1.0, 0.9, 0.8, 0.7, 0.6], larger_is_better=False) == 3
    assert elbow([1, 2, 3, 4, 5, 6, 7], [0.0, 5.0, 9.0, 9.1, 9.2, 9.3, 9.4], larger_is_better=True) == 3


@pytest.mark.parametrize("values", [[1.0, 1.0, 1.0, 1.0], [4.0, 3.0, 2.0, 1.0]])
def test_no_knee(values: list[float]) -> None:
    assert elbow([1, 2, 3, 4], values, larger_is_better=False) is None


def test_two_points_have_no_knee() -> None:
    assert elbow([4, 8], [2.0, 1.0], larger_is_better=False) is None
