"""Two looks at one comparison: error and coverage whichever look was the last, against simulation."""

from math import inf

import numpy as np
import pytest
from scipy.stats import norm

from loratune.maths.looks import first_look_alpha
from loratune.maths.noninferiority import Comparison, Verdict

MARGIN = 0.5
FIRST, LAST = 2, 4
RUNS = 1500


def look(values: np.ndarray) -> Comparison:
    return Comparison(
        difference=float(values.mean()), standard_error=len(values) ** -0.5, degrees=inf, margin=MARGIN
    )


def experiment(generator: np.random.Generator, truth: float) -> Comparison:
    values = truth + generator.standard_normal(LAST)
    early = look(values[:FIRST]).at_first_look(FIRST / LAST)
    return early if early.verdict is not Verdict.UNDECIDED else look(values).after(early)


@pytest.mark.parametrize("truth", [-2.0, -0.8, 0.5, 2.0])
def test_intervals_cover_at_their_level_after_stopping(truth: float) -> None:
    generator = np.random.default_rng(0)
    found = [experiment(generator, truth) for _ in range(RUNS)]
    inside = [c.interval is not None and c.interval[0] <= truth <= c.interval[1] for c in found]
    assert 0.933 <= np.mean(inside) <= 0.967  # three standard errors
    both = [c.earlier is not None for c in found]
    assert 0 < np.mean(both) < 1 or truth == 0.5


def test_looking_twice_does_not_inflate_the_error() -> None:
    generator = np.random.default_rng(1)
    found = [experiment(generator, MARGIN).verdict for _ in range(3000)]
    assert np.mean([verdict is Verdict.ADEQUATE for verdict in found]) <= 0.062
    assert np.mean([verdict is Verdict.INFERIOR for verdict in found]) <= 0.062


def test_a_bound_and_the_verdict_agree() -> None:
    generator = np.random.default_rng(2)
    found = [experiment(generator, -0.8) for _ in range(200)]
    late = [c for c in found if c.earlier is not None]
    assert len(late) > 50
    assert all((c.verdict is Verdict.ADEQUATE) == (c.upper <= MARGIN) for c in late)


def test_the_first_look_spends_by_obrien_and_fleming() -> None:
    assert first_look_alpha(0.5, 0.05) == pytest.approx(2 * norm.sf(1.96 / 0.5**0.5), abs=1e-5)
    assert first_look_alpha(1.0, 0.05) == pytest.approx(0.05)


def test_bounds_are_mirror_images() -> None:
    early = look(np.array([0.1, 0.7])).at_first_look(0.5)
    late = Comparison(difference=0.3, standard_error=0.5, degrees=6, margin=MARGIN).after(early)
    turned = Comparison(difference=0.7, standard_error=0.5, degrees=6, margin=MARGIN).after(early)
    assert late.upper - MARGIN == pytest.approx(MARGIN - turned.lower, abs=1e-5)
