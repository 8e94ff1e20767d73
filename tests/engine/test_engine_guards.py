"""When a trial counts as diverged."""

import math

import numpy as np
import pytest

from loratune.engine.slot import DivergenceGuard


def first_verdict(losses: list[float], batch_size: int, norm: float = 1.0) -> tuple[int, str]:
    guard = DivergenceGuard(batch_size=batch_size, vocabulary=50_000)
    for step, loss in enumerate(losses, 1):
        if words := guard.verdict(loss, norm):
            return step, words
    return 0, ""


@pytest.mark.parametrize(
    ("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (2.0, math.nan), (2.0, math.inf)]
)
def test_one_step_that_is_not_finite_is_skipped_and_a_lasting_one_is_not(loss: float, norm: float) -> None:
    guard = DivergenceGuard(batch_size=4, vocabulary=50_000)
    steps = [(2.0, 1.0)] * 50 + [(loss, norm)] + [(2.0, 1.0)] * 9
    assert not any(guard.verdict(*step) for step in steps * 5), "one in sixty"
    assert [bool(guard.verdict(loss, norm)) for _ in range(4)] == [False, False, False, True], (
        "broken weights"
    )


def test_from_the_start_on_two_are_too_many() -> None:
    step, words = first_verdict([math.nan] * 3, 4)
    assert step == 2
    assert "loss nan" in words


def test_a_tenth_of_the_steps_may_be_skipped() -> None:
    assert first_verdict(([2.0] * 11 + [math.nan]) * 20, 4) == (0, "")
    assert first_verdict(([2.0] * 7 + [math.nan]) * 20, 4)[0] > 8


def test_worse_than_guessing() -> None:
    assert first_verdict([2.0, 2 * math.log(50_000) + 0.1], 4)[0] == 2


@pytest.mark.parametrize("batch_size", [1, 4, 16, 64])
def test_a_lasting_rise_of_a_nat_is_found(batch_size: int) -> None:
    quiet = math.ceil(64 / batch_size) + 2
    step, words = first_verdict([2.0] * quiet + [3.0] * 400, batch_size)
    assert step >= 10
    assert "rose from 2.00" in words


def test_a_single_bad_batch_is_forgiven() -> None:
    assert first_verdict([2.0] * 12 + [5.0] + [2.0] * 50, 16) == (0, "")


@pytest.mark.parametrize("seed", range(20))
def test_noise_of_single_rows_raises_no_alarm(seed: int) -> None:
    """Losses of rows with mean 2 and standard deviation 1.3, batch 1, no trend."""
    losses = np.random.default_rng(seed).gamma(2.4, 2 / 2.4, 1000).tolist()
    assert first_verdict(losses, 1) == (0, "")
