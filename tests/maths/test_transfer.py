"""What measured tasks say about new ones: known answers of the Gaussian model, coverage, the shipped tables."""

from dataclasses import replace
from math import log
from pathlib import Path
from subprocess import run
from sys import executable

import numpy as np
import pytest

from loratune.maths.curves import best_rate, needed_rank
from loratune.maths.learned import (
    RANK_SPREAD,
    RATE_SPREAD,
    learn_rank,
    learn_rate,
    measured_tasks,
    rank_residuals,
    rate_residuals,
)
from loratune.maths.transfer import Belief, Residual, Spread, believe, calibrate, errors_of
from loratune.values import Optimum, StudiedTask

SPREAD = Spread(level=0.3, dataset=0.5, family=0.4, own=0.1)


def test_nothing_measured_is_the_law_with_all_its_spread() -> None:
    belief = believe([], Residual(dataset="new", family="llama"), SPREAD)
    assert belief.mean == 0
    assert belief.sd == pytest.approx((0.09 + 0.25 + 0.16 + 0.01) ** 0.5)


def test_one_task_of_the_same_data_and_family_is_almost_the_answer() -> None:
    measured = [Residual(value=0.8, dataset="mine", family="llama")]
    same = believe(measured, Residual(dataset="mine", family="llama"), SPREAD)
    shared, own = 0.09 + 0.25 + 0.16, 0.01
    assert same.mean == pytest.approx(0.8 * shared / (shared + own), rel=1e-6)
    assert same.sd == pytest.approx((shared + own - shared**2 / (shared + own)) ** 0.5, rel=1e-4)


def test_less_is_shared_with_other_data_and_nothing_but_the_level_with_strangers() -> None:
    measured = [Residual(value=1.0, dataset="mine", family="llama", kind="classification")]
    targets = [("mine", "llama"), ("mine", "qwen3"), ("other", "llama"), ("other", "qwen3"), ("", "")]
    beliefs = [believe(measured, Residual(dataset=d, family=f), SPREAD) for d, f in targets]
    means, sds = [b.mean for b in beliefs], [b.sd for b in beliefs]
    assert means[0] > means[1] > means[2] > means[3] == means[4] > 0
    assert sds[0] < sds[1] < sds[2] < sds[3] == pytest.approx(sds[4])


def test_a_slope_is_learnt_from_features() -> None:
    spread = Spread(level=0.1, dataset=0.1, family=0.0, slopes=(1.0,), own=0.05)
    measured = [Residual(value=0.5 * x, dataset=f"d{x}", features=(float(x),)) for x in range(-3, 4)]
    assert believe(measured, Residual(dataset="new", features=(2.0,)), spread).mean == pytest.approx(
        1.0, abs=0.05
    )


def test_updating_is_precision_weighting() -> None:
    belief = Belief(mean=0.0, sd=0.5).updated(1.0, 0.5)
    assert belief.mean == pytest.approx(0.5)
    assert belief.sd == pytest.approx(0.5 / 2**0.5)


def drawn(random: np.random.Generator, datasets: int, families: int = 4) -> list[Residual]:
    """Tasks from the model itself: every dataset with two families."""
    level = random.normal(0, SPREAD.level)
    family = random.normal(0, SPREAD.family, families)
    found = []
    for d in range(datasets):
        effect = random.normal(0, SPREAD.dataset)
        for f in random.choice(families, 2, replace=False):
            value = level + effect + family[f] + random.normal(0, SPREAD.own)
            found.append(Residual(value=value, dataset=f"d{d}", family=f"f{f}"))
    return found


@pytest.mark.parametrize(("scale", "datasets"), [(1.0, 12), (2.0, 12), (1.0, 3)])
def test_intervals_cover_new_datasets_even_where_the_spread_was_understated(
    scale: float, datasets: int
) -> None:
    """`scale` 2: truth deviates twice as much as the model believes; only the calibration can know."""
    random = np.random.default_rng(0)
    hits, wanted = 0, 0.0
    repeats = 80
    for _ in range(repeats):
        tasks = [replace(task, value=scale * task.value) for task in drawn(random, datasets + 1)]
        target, measured = tasks[-1], [task for task in tasks if task.dataset != tasks[-1].dataset]
        found, belief = calibrate(measured, target, SPREAD), believe(measured, target, SPREAD)
        hits += abs(target.value - belief.mean) <= found.factor * belief.sd
        wanted = found.coverage
    assert wanted == pytest.approx(min(0.9, datasets / (datasets + 1)))
    assert hits / repeats >= wanted - 0.07


def test_few_datasets_say_so_and_are_never_narrower_than_the_model() -> None:
    measured = [Residual(value=0.01, dataset=name) for name in "ab"]
    found = calibrate(measured, Residual(dataset="c"), SPREAD)
    assert (found.tasks, found.datasets) == (2, 2)
    assert found.coverage == pytest.approx(2 / 3)
    assert found.factor == pytest.approx(1.645, abs=1e-3)
    assert found.sentence == "67 % by leaving out one dataset at a time, n = 2 tasks of 2 datasets"
    assert calibrate([], Residual(), SPREAD).tasks == 0


def test_a_crowd_on_one_dataset_does_not_outvote_the_others() -> None:
    crowd = [Residual(value=0.0, dataset="crowd", family=f"f{i}") for i in range(30)]
    rest = [Residual(value=2.0, dataset=f"d{i}") for i in range(9)]
    errors = sorted(abs(error) for error in errors_of(crowd + rest, SPREAD))
    assert calibrate(crowd + rest, Residual(dataset="new"), SPREAD).factor >= errors[-9]


def test_best_rate() -> None:
    rates = [1e-4, 3e-4, 1e-3, 3e-3]
    losses = [float(np.exp(0.1 * (log(rate) - log(5e-4)) ** 2)) for rate in rates]
    rate, nll, inside = best_rate(rates, losses)
    assert rate == pytest.approx(5e-4, rel=1e-6)
    assert (nll, inside) == (losses[1], True)
    assert best_rate(rates, [1.0, 2.0, 3.0, 4.0]) == (1e-4, 1.0, False)
    assert best_rate(rates, [3.0, 2.0, 1.0, float("inf")]) == (1e-3, 1.0, True)
    with pytest.raises(ValueError, match="finite"):
        best_rate(rates, [float("inf")] * 4)


def curve(scale: float, *ranks: int) -> tuple[Optimum, ...]:
    """Planted power law 0.5 + scale · r^-0.65."""
    return tuple(
        Optimum(
            r=r, lora_alpha=32, batch_size=16, learning_rate=1e-3, nll=0.5 + scale * r**-0.65, inside=True
        )
        for r in ranks
    )


def test_needed_rank_inverts_a_planted_power_law() -> None:
    found = needed_rank(curve(0.1, 1, 4, 16, 64))
    assert found is not None
    assert 0.1 * found**-0.65 - 0.1 * 64**-0.65 == pytest.approx(0.005, abs=2e-4)
    assert needed_rank(curve(0.001, 1, 4, 16, 64)) == pytest.approx(1.0)
    assert needed_rank(curve(0.1, 4, 64)) is None
    assert needed_rank(curve(0.1, 1, 2, 4)) is None


def test_shipped_tables_are_whole() -> None:
    tasks = measured_tasks()
    assert len({(task.dataset, task.model) for task in tasks}) == len(tasks) == 38
    assert sum(len(task.optima) for task in tasks) == 153  # every row of optima.csv has found its task
    assert all(task.source for task in tasks)
    banking = next(task for task in tasks if task.dataset == "banking77")
    needed = needed_rank(banking.optima)
    assert needed is not None
    assert 2 <= needed <= 4  # §11: rank 4 ties with everything


def test_shipped_tables_are_what_the_script_reads_off_the_grid() -> None:
    checkout = Path(__file__).parents[2]
    grid = checkout.parent / "shared" / "data" / "grid_banking77.csv"
    if not grid.exists():
        pytest.skip("the measured grid is not here")
    script = checkout / "bench" / "measured_tables.py"
    command = [executable, str(script), "banking77", str(grid), "--model", "SmolLM2-135M-Instruct"]
    lines = run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    shipped = (checkout / "src/loratune/maths/tables/optima.csv").read_text().splitlines()
    assert len(lines) == 13
    assert set(lines) <= set(shipped)


def test_left_out_datasets_are_predicted_within_the_models_spread() -> None:
    """If the assumed spreads were too small, standardised errors would exceed the normal's far too often."""
    for residuals, spread in (
        (rate_residuals(measured_tasks()), RATE_SPREAD),
        (rank_residuals(measured_tasks()), RANK_SPREAD),
    ):
        errors = np.abs(errors_of(residuals, spread))
        assert errors.max() < 2.5
        assert (errors > 1.645).mean() <= 0.1 + (0.1 * 0.9 / len(errors)) ** 0.5  # a tenth is expected


BANKING = StudiedTask(
    dataset="rows-1", model="m", family="llama", kind="classification", hidden_size=576,
    parameters_per_rank=305_280, rows=2000, epochs=3, supervised_tokens=12_000, labels=77,
)  # fmt: skip


def test_an_old_study_of_the_same_data_carries_over_to_a_new_model() -> None:
    """Its optima lie a factor 3 above the law: the new model is expected above it too, and more surely."""
    optima = tuple(
        Optimum(r=8, lora_alpha=16, batch_size=16, learning_rate=3 * rate, nll=0.2, inside=True)
        for rate in (1.4e-3,)
    )
    old = replace(BANKING, optima=optima, needed_rank=4)
    new = replace(BANKING, model="n", family="qwen3", hidden_size=1024, parameters_per_rank=600_000)
    without, with_it = (learn_rate(new, tasks) for tasks in (measured_tasks(), (*measured_tasks(), old)))
    assert with_it.factor > without.factor * 1.3
    assert with_it.belief.sd < without.belief.sd
    assert with_it.calibration.unit == "task"
    ranks = [learn_rank(new, tasks).belief.sd for tasks in (measured_tasks(), (*measured_tasks(), old))]
    assert ranks[1] < ranks[0]
