"""The evidence's analysis on planted laws: exponents, what lies at an edge, ranks with and without an effect."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "bench"))

from evidence_analysis import Grid, Run, across, rank_tests, ratio_exponent, slope, smallest_adequate

RATES = [3.2e-5 * 2.5**i for i in range(9)]
RANKS = (2, 8, 32, 128)
NOISE = 0.004


def optimum(rank: int, alpha: float, batch: int = 16) -> float:
    """The laws' exponents: 0.18 in rank, -0.8 in alpha, 0.5 in batch size."""
    return 1.4e-3 * (rank / 16) ** 0.18 * (alpha / 32) ** -0.8 * (batch / 16) ** 0.5


def planted(
    *, effect: float = 0.0, alphas: tuple[float, ...] = (), batches: tuple[int, ...] = ()
) -> list[Run]:
    """Two seeds of every rate within a factor 6 of the optimum; `effect`: what rank 1 adds to the loss."""
    random = np.random.default_rng(0)
    places = [(rank, 2.0 * rank, 16) for rank in RANKS]
    places += [(rank, alpha, 16) for rank in (2, 128) for alpha in alphas]
    places += [(8, 16.0, batch) for batch in batches]
    runs = []
    for rank, alpha, batch in places:
        for rate in RATES:
            away = np.log(rate / optimum(rank, alpha, batch))
            for seed in (0, 1) if abs(away) < np.log(6) else ():
                loss = (1 + 0.05 * away**2 + effect * rank**-0.65) * np.exp(random.normal(0, NOISE))
                runs.append(
                    Run(
                        dataset="planted",
                        rows=2000,
                        rank=rank,
                        lora_alpha=alpha,
                        learning_rate=rate,
                        batch_size=batch,
                        seed=seed,
                        epochs=1.0,
                        nll=loss,
                        exact_match=0.5,
                    )
                )
    return runs


def test_planted_exponents_are_found_within_their_intervals() -> None:
    grid = Grid(planted(alphas=(32.0,), batches=(4, 64)))
    sd = grid.relative_noise("planted", 2000)
    assert sd == pytest.approx(NOISE, rel=0.8)
    doubled = grid.by_rank("planted", 2000)
    constant = grid.by_rank("planted", 2000, 32.0)
    by_batch = grid.by_batch("planted", 2000, 8)
    assert [curve.place.batch_size for curve in by_batch] == [4, 16, 64]
    for curves, size, planted_exponent in (
        (doubled, lambda c: c.place.rank, -0.62),
        (constant, lambda c: c.place.rank, 0.18),
        (by_batch, lambda c: c.place.batch_size, 0.5),
    ):
        found = slope(curves, size, sd)
        assert found is not None
        assert found[1] == len(curves)
        # a parabola through three points of a parabola in log loss errs a little beside the noise
        assert found[0].low - 0.02 <= planted_exponent <= found[0].high + 0.02
        assert found[0].high - found[0].low < 0.2
    alpha = ratio_exponent(constant[0], doubled[0], 4 / 32, sd)
    assert alpha.low - 0.02 <= -0.8 <= alpha.high + 0.02


def test_an_optimum_at_the_edge_enters_no_exponent() -> None:
    grid = Grid(run for run in planted() if run.rank > 2 or run.learning_rate < optimum(2, 4.0) / 2)
    curves = grid.by_rank("planted", 2000)
    found = slope(curves, lambda c: c.place.rank, NOISE)
    assert len(curves) == 4
    assert found is not None
    assert found[1] == 3
    assert found[0].value == pytest.approx(-0.62, abs=0.05)


@pytest.mark.parametrize(("effect", "smallest"), [(0.0, 2), (0.5, 128)])
def test_the_smallest_adequate_rank_follows_the_planted_effect(effect: float, smallest: int) -> None:
    grid = Grid(planted(effect=effect))
    random = np.random.default_rng(1)
    weights = random.integers(5, 20, 400).astype(float)
    own = np.exp(random.normal(0, 0.5, 400))
    own *= weights.sum() / (own * weights).sum()
    examples = {
        ("planted", 2000, run.rank, run.learning_rate, 16, run.seed): run.nll * own * weights
        for run in grid.runs
    }
    tests = rank_tests(grid, "planted", 2000, examples, weights, margin=0.02)
    assert [test.rank for test in tests] == [128, 32, 8, 2]
    assert smallest_adequate(tests) == smallest
    alone = rank_tests(grid, "planted", 2000, {}, weights, margin=0.02)
    assert smallest_adequate(alone) == 128  # without losses of rows nothing is shown


def test_over_datasets_the_interval_is_students() -> None:
    found = across([1.0, 2.0, 3.0])
    assert found is not None
    assert (found.value, found.high - found.value) == (2.0, pytest.approx(4.303 / 3**0.5, rel=1e-3))
    assert across([1.0]) is None
