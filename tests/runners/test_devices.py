"""The simulated clock, and the simple policies that a search is held against."""

from math import inf
from pathlib import Path

import pytest

from baselines import ALL, BASELINES, make
from devices import COMPUTE_BOUND, LAUNCH_BOUND, Device, play_on
from loratune.runners.simulated import TableRunner
from planted import RANKS, Planted

TWO_POINTS = Device(name="two", points=((16.0, 1.0), (64.0, 2.5)))
"""Four runs at batch 16 in two and a half times the time of one."""


@pytest.fixture
def runner(tmp_path: Path) -> TableRunner:
    return TableRunner.open(Planted(noise=0.0, seeds=1).write(tmp_path / "planted.csv"), "planted")


def test_a_step_is_straight_between_the_points_and_proportional_beyond() -> None:
    assert TWO_POINTS.step(40) == pytest.approx(1.75)
    assert TWO_POINTS.step(128) == pytest.approx(5.0)
    assert TWO_POINTS.step(4) == 1.0  # a launch takes as long for fewer rows
    assert COMPUTE_BOUND.step(4) == 0.25
    assert 16 * 32 * 25.4 / LAUNCH_BOUND.step(16 * 32) == pytest.approx(283_268)


def test_runs_that_fit_come_in_waves(runner: TableRunner) -> None:
    context = runner.context()
    assert TWO_POINTS.runs(context, 2.5) == 4
    assert TWO_POINTS.runs(context, 2.5, width=1) == 2
    assert TWO_POINTS.runs(context, 3.5) == 5  # beyond the last point a run is 2.5/4
    assert COMPUTE_BOUND.runs(context, 8.0) == 8


def test_the_clock_counts_what_runs_side_by_side_once(runner: TableRunner) -> None:
    context = runner.context(budget=4.0)
    history, seconds = play_on(TWO_POINTS, make("rank 16 with 4 wide rates", context), runner)
    assert len(history) == 4
    assert seconds == pytest.approx(2.5 * TWO_POINTS.alone(context))


def test_the_clock_takes_away_what_is_unfinished(runner: TableRunner) -> None:
    context = runner.context(budget=4.0)
    limit = 2.4 * TWO_POINTS.alone(context)
    history, seconds = play_on(TWO_POINTS, make("rank 16 with 4 wide rates", context), runner, limit)
    assert (history, seconds) == ((), limit)


def test_the_largest_rank_is_bracketed_until_its_best_is_inside(runner: TableRunner) -> None:
    strategy = make("largest, bracketed", runner.context(budget=inf))
    history, _ = play_on(LAUNCH_BOUND, strategy, runner)
    setting = strategy.decide(history).hyper_parameters
    best = min((cell for cell in runner.full if cell.rank == max(RANKS)), key=lambda cell: cell.nll)
    assert setting.r == max(RANKS)
    assert runner.snap(setting) == best


@pytest.mark.parametrize("name", sorted(set(BASELINES) | {"random", "evidence"}))
@pytest.mark.parametrize("device", [LAUNCH_BOUND, COMPUTE_BOUND], ids=lambda device: device.name)
def test_every_strategy_ends_in_time(runner: TableRunner, name: str, device: Device) -> None:
    context = runner.context(budget=6.0)
    strategy = make(name, context, device)
    history, seconds = play_on(device, strategy, runner, 6 * device.alone(context))
    assert history
    assert seconds <= 6 * device.alone(context) * (1 + 1e-9)
    assert strategy.decide(history).hyper_parameters.r in RANKS
    assert name in ALL
