"""The two ranks, and what they lost where the truth was measured."""

from dataclasses import replace
from math import inf, nan

import pytest

from loratune.maths.curves import rank_curve
from loratune.maths.learned import Learned, law_rank, learn_rank, measured_tasks
from loratune.maths.prior import USUAL_RANK, left_out, likely_rank, loss_at, safe_rank
from loratune.maths.transfer import Belief
from loratune.values import Optimum, StudiedTask


def learned(mean: float, sd: float) -> Learned:
    return Learned(belief=Belief(mean=mean, sd=sd), calibration=learn_rank(TASK, ()).calibration)


def optima(losses: dict[int, float]) -> tuple[Optimum, ...]:
    return tuple(
        Optimum(r=r, lora_alpha=2 * r, batch_size=16, learning_rate=1e-3, nll=nll, inside=True)
        for r, nll in losses.items()
    )


TASK = StudiedTask(
    dataset="a",
    model="m",
    family="llama",
    kind="reasoning",
    hidden_size=576,
    parameters_per_rank=300_000,
    rows=2000.0,
    epochs=1.0,
    supervised_tokens=200_000,
    labels=0,
    optima=optima({2: 0.7, 8: 0.64, 32: 0.62, 128: 0.61}),
)


def test_ranks_are_powers_of_two_about_the_belief() -> None:
    assert likely_rank(learned(0.0, 1.0), 5.0) == 8
    assert likely_rank(learned(0.0, 1.0), 5.0, floor=20.0) == 32
    assert safe_rank(learned(0.0, 1.0), 30.0) == 128  # 30 e = 81.5
    assert safe_rank(learned(0.0, 1.0), 2.0) == USUAL_RANK
    assert safe_rank(learned(0.0, 3.0), 100.0) == 256


def test_a_loss_between_measured_ranks_is_straight_in_the_logarithm() -> None:
    curve = rank_curve(TASK.optima)
    assert loss_at(curve, 16) == pytest.approx(0.63)
    assert (loss_at(curve, 1), loss_at(curve, 256)) == (0.7, 0.61)


@pytest.mark.parametrize("losses", [{2: 0.7, 32: 0.6}, {1: 0.7, 2: 0.6, 4: 0.5}, {2: nan, 8: inf, 32: 0.5}])
def test_a_curve_needs_three_ranks_that_reach_far_enough(losses: dict[int, float]) -> None:
    assert rank_curve(optima(losses)) == {}


def test_regret_is_that_of_ranks_chosen_without_the_dataset() -> None:
    other = replace(TASK, dataset="b", optima=optima({2: 0.5, 8: 0.5, 32: 0.5, 128: 0.5}))
    found = left_out([TASK, other])
    belief = learn_rank(TASK, [other])
    regret = loss_at(rank_curve(TASK.optima), likely_rank(belief, law_rank(TASK))) - 0.61
    assert found["likely"].worst == pytest.approx(regret)
    assert found["likely"].mean == pytest.approx(regret / 2)  # where all ranks are alike none is wrong
    assert found["constant 32"].mean == pytest.approx(0.005)
    assert (found["safe"].tasks, found["safe"].datasets) == (2, 2)


def test_the_safe_rank_does_not_lose_to_a_constant_on_the_shipped_tasks() -> None:
    found = left_out(measured_tasks())
    assert found["safe"].mean <= found["constant 32"].mean
    assert found["safe"].worst <= found["constant 32"].worst
    assert found["safe"].mean < found["likely"].mean


def test_without_curves_nothing_is_told() -> None:
    assert left_out([replace(TASK, optima=())]) == {}
