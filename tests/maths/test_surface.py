"""The surface of loss over rank and learning rate: known answers."""

from math import log

import numpy as np
import pytest

from loratune.maths.surface import Runs, Surface

CURVATURE = 0.04
STEP = log(3)


def parabola(rates: list[float], best: float, *, r: int = 16, noise: float = 1e-4) -> tuple[Runs, ...]:
    """Runs whose y lies on a parabola about `best`, each three times."""
    values = [CURVATURE * (u - best) ** 2 for u in rates]
    return tuple(Runs((r, u), (y - noise, y, y + noise)) for u, y in zip(rates, values, strict=True))


@pytest.mark.parametrize("off", [0.0, 0.3, 0.5])
def test_how_far_the_best_tried_lies_above_the_minimum(off: float) -> None:
    """Of one rank tried on a ladder of threes that misses the minimum, against another that was run at its own."""
    ladder = [-2 * STEP, -STEP, 0.0, STEP, 2 * STEP]
    runs = (*parabola(ladder, off), *parabola(ladder, 0.0, r=64))
    around = np.linspace(-STEP, STEP, 9)
    places = tuple((r, float(u)) for r in (16, 64) for u in (0.0, *around))
    mean, sd = Surface(runs, places).drop(10)
    assert abs(mean - CURVATURE * off**2) < 2 * sd, (
        "neighbours high above the best count less, so it is shrunk"
    )
    assert sd < 0.01


def test_a_side_on_which_nothing_was_tried_leaves_the_minimum_open() -> None:
    beside = parabola([-STEP, 0.0, STEP], 0.0, r=64)
    places = tuple((r, float(u)) for r in (16, 64) for u in (0.0, *np.linspace(-STEP, STEP, 9)))
    _, closed = Surface((*parabola([-STEP, 0.0, STEP], 0.0), *beside), places).drop(10)
    _, left_open = Surface((*parabola([0.0, STEP], 0.0), *beside), places).drop(10)
    assert left_open > 1.5 * closed


def test_a_lower_loss_is_believed_where_the_noise_is_known_to_be_small() -> None:
    """Rank 64 was lower at the higher rate by 20 sd, against what rank 16 says of it."""
    places = ((64, 0.0), (64, STEP), (16, 0.0), (16, -STEP))
    values = (0.0, -0.006, 0.0005, 0.0068)
    runs = tuple(Runs(place, (y,)) for place, y in zip(places, values, strict=True))
    assert Surface(runs, places, noise=3e-4).means == pytest.approx(values, abs=0.001)


@pytest.mark.parametrize("off", [0.0, 0.5])
def test_what_a_rate_between_those_tried_may_gain(off: float) -> None:
    """Most at the minimum that the ladder missed: what it lies below the best tried; nothing at a place tried."""
    runs = parabola([-2 * STEP, -STEP, 0.0, STEP, 2 * STEP], off)
    places = tuple((16, float(u)) for u in (0.0, *np.linspace(-STEP, STEP, 9)))
    gains = Surface(runs, places).gains(0)
    best = places[int(gains.argmax())][1]
    assert gains[0] < 0.1 * CURVATURE * 0.5**2
    if off:
        assert abs(best - off) <= STEP / 4
        assert gains.max() == pytest.approx(CURVATURE * off**2, rel=0.5)


def test_ranks_may_differ_where_seeds_do() -> None:
    """Of two tasks of which a small rank measured two sd of a run worse, in two runs, its loss is as likely within one
    sd on the one with much noise as on the one with little."""
    likely = []
    for noise in (0.004, 0.12):
        runs = tuple(
            Runs((r, u), (y - 0.7 * noise, y + 0.7 * noise))
            for r, worse in ((4, 2.0 * noise), (64, 0.0))
            for u in (-STEP, 0.0, STEP)
            for y in [worse + CURVATURE * u**2]
        )
        likely.append(Surface(runs, ((4, 0.0), (64, 0.0))).below(0, 1, noise))
    assert likely[0] == pytest.approx(likely[1], abs=0.2)
    assert max(likely) < 0.5
