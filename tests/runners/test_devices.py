"""The simulated clock, and the simple policies that a search is held against."""

from math import inf
from pathlib import Path

import pytest

from baselines import ALL, BASELINES
from devices import COMPUTE_BOUND, LAUNCH_BOUND, Device, alone, play_on
from planted import RANKS, Planted
from simulated import TableRunner

TWO_POINTS = Device(name="two", points=((0.0, 1.0), (16.0, 1.0), (64.0, 2.5)))
"""Four runs at batch 16 in two and a half times the time of one."""


@pytest.fixture
def runner(tmp_path: Path) -> TableRunner:
    return TableRunner.open(Planted(noise=0.0, seeds=1).write(tmp_path / "planted.csv"), "planted")


def test_a_device_is_told_in_tokens_of_the_tasks_own_rows(runner: TableRunner) -> None:
    context = runner.context()
    length = context.data.tokens / context.data.rows
    for rows, seconds in ((4, 1.0), (40, 1.75), (128, 5.0)):
        assert TWO_POINTS.told(context).costs.pace.step(rows * length) == pytest.approx(seconds)
    assert COMPUTE_BOUND.told(context).costs.pace.step(4 * length) == pytest.approx(0.25)
    wide = LAUNCH_BOUND.told(context).costs.pace.step(64 * 16 * length)
    assert 64 * 16 * 25.4 / wide == pytest.approx(283_268)  # flat beyond 32 trials


def test_the_clock_counts_what_runs_side_by_side_once(runner: TableRunner) -> None:
    context = TWO_POINTS.told(runner.context(budget=4.0))
    history, seconds = play_on(ALL["rank 16 with 4 wide rates"](context), runner)
    assert len(history) == 4
    assert seconds == pytest.approx(2.5 * alone(context))


def test_the_clock_takes_away_what_is_unfinished(runner: TableRunner) -> None:
    context = TWO_POINTS.told(runner.context(budget=4.0))
    limit = 2.4 * alone(context)
    assert play_on(ALL["rank 16 with 4 wide rates"](context), runner, limit) == ((), limit)


def test_runs_in_proportion_to_tokens_take_their_turn(runner: TableRunner) -> None:
    context = COMPUTE_BOUND.told(runner.context(budget=8.0))
    history, seconds = play_on(ALL["wide grid"](context), runner)
    assert len(history) == 8
    assert seconds <= 8 * alone(context) * (1 + 1e-9)


def test_the_largest_rank_is_bracketed_until_its_best_is_inside(runner: TableRunner) -> None:
    strategy = ALL["largest, bracketed"](LAUNCH_BOUND.told(runner.context(budget=inf)))
    setting = strategy.decide(play_on(strategy, runner)[0]).hyper_parameters
    best = min((cell for cell in runner.full if cell.rank == max(RANKS)), key=lambda cell: cell.nll)
    assert setting.r == max(RANKS)
    assert runner.snap(setting) == best


@pytest.mark.parametrize("name", sorted(set(BASELINES) | {"random", "evidence"}))
@pytest.mark.parametrize("device", [LAUNCH_BOUND, COMPUTE_BOUND], ids=lambda device: device.name)
def test_every_strategy_ends_in_time(runner: TableRunner, name: str, device: Device) -> None:
    context = device.told(runner.context(budget=6.0))
    strategy = ALL[name](context)
    history, seconds = play_on(strategy, runner, 6 * alone(context))
    assert history
    assert seconds <= 6 * alone(context) * (1 + 1e-9)
    assert strategy.decide(history).hyper_parameters.r in RANKS
