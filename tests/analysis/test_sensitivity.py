"""What mattered: shares of variance against the exact answer, contrasts, costs, and when it stays silent."""

from collections.abc import Callable
from dataclasses import replace
from math import inf, log
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest

from engine_fixture import engine, tiny_llama
from loratune.analysis import sensitivity as run
from loratune.analysis.effects import contrast, coordinates, range_interval
from loratune.analysis.sensitivity import sensitivity
from loratune.costs.memory import MemoryEstimate
from loratune.engine.selfcheck import random_table
from loratune.maths.noninferiority import Comparison, compare_means, pool_seed_noise
from loratune.reporting.impacts import impact_table
from loratune.search.field import believed
from loratune.values import (
    DataFacts,
    HyperParameters,
    SearchContext,
    Stage,
    Trial,
    TrialResult,
    TrialState,
    Wishes,
)
from loratune.values.analysis import Impact, Sensitivity
from simulated import read_table
from subjects import subject_of

BANKING = Path(__file__).parents[3] / "shared" / "data" / "grid_banking77.csv"
RANKS, RATES = (2, 4, 8, 16, 32), (1e-4, 3e-4, 1e-3, 3e-3)
CHOSEN = HyperParameters(r=8, lora_alpha=16, learning_rate=1e-3, batch_size=16)


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_RESAMPLES", 6)


class PerRank(NamedTuple):
    """A memory model that is easy to check: a megabyte for each unit of rank."""

    def estimate(self, pack: list[HyperParameters]) -> MemoryEstimate:  # type: ignore[override]
        names = MemoryEstimate.__dataclass_fields__
        return MemoryEstimate(**(dict.fromkeys(names, 0) | {"adapters": sum(hp.r for hp in pack) * 2**20}))


def result(
    nll: float, *, seed: int = 0, fraction: float = 1.0, stage: Stage = Stage.RANK, **values: float
) -> TrialResult:
    facts = {"r": 8, "learning_rate": 1e-3, "batch_size": 16} | values
    facts.setdefault("lora_alpha", 2 * facts["r"])
    trial = Trial(hyper_parameters=HyperParameters(**facts), seed=seed, fraction=fraction, stage=stage)  # type: ignore[arg-type]
    state = TrialState.COMPLETE if nll < inf else TrialState.DIVERGED
    return TrialResult(asked=trial, trial=trial, nll=nll, state=state)


def table(loss: Callable[[int, float], float], seeds: int = 2, noise: float = 0.0) -> list[TrialResult]:
    """Every rank at every learning rate."""
    random = np.random.default_rng(0)
    return [
        result(loss(r, rate) + noise * random.standard_normal(), r=r, learning_rate=rate, seed=seed)
        for r in RANKS
        for rate in RATES
        for seed in range(seeds)
    ]


def found(results: list[TrialResult], chosen: HyperParameters = CHOSEN) -> Sensitivity:
    base = tiny_llama()
    subject = engine(replace(base, profile=replace(base.profile, parameters=100_000)), random_table(97))
    return sensitivity(chosen, results, subject_of(subject), PerRank())  # type: ignore[arg-type]


def shares(results: list[TrialResult]) -> dict[str, float]:
    answer = found(results)
    assert all(each.share is not None for each in answer.impacts)
    return {each.name: each.share or 0.0 for each in answer.impacts}


def test_one_that_matters_and_one_that_does_not() -> None:
    told = shares(table(lambda r, rate: abs(log(rate / 1e-3)), noise=0.01))
    assert told["learning_rate"] > 0.9
    assert told["r"] < 0.05


def test_equal_parts() -> None:
    """Two independent effects of the same variance: half each, but for what the forest smooths away."""
    a, b = np.std(np.log(RANKS)), np.std(np.log(RATES))
    told = shares(table(lambda r, rate: log(r) / a + log(rate) / b, seeds=3))
    assert told["r"] == pytest.approx(0.5, abs=0.06)
    assert told["learning_rate"] == pytest.approx(0.5, abs=0.06)


def test_a_pure_interaction_is_nobodys_share() -> None:
    """As where each rank wants its own learning rate: each alone explains nothing."""
    answer = found(table(lambda r, rate: (RANKS.index(r) - 2) * (RATES.index(rate) - 1.5), seeds=3))
    assert answer.interactions is not None
    assert answer.interactions > 0.85


@pytest.mark.skipif(not BANKING.is_file(), reason="the shared tables are not there")
def test_the_measured_grid_against_the_exact_decomposition() -> None:
    """banking77: exact shares of the balanced grid .060 (rank) and .277 (learning rate), the rest interaction."""
    cells = [c for c in read_table(BANKING)["banking77"] if c.fraction == 1 and c.batch_size == 16]
    results = [
        result(c.nll, r=c.rank, learning_rate=c.learning_rate, lora_alpha=c.lora_alpha, seed=c.seed)
        for c in cells
    ]
    ranks, rates = (sorted({getattr(c, name) for c in cells}) for name in ("rank", "learning_rate"))
    grid = np.array(
        [
            [np.mean([c.nll for c in cells if (c.rank, c.learning_rate) == (r, x)]) for x in rates]
            for r in ranks
        ]
    )
    exact = [grid.mean(axis).var() / grid.var() for axis in (1, 0)]
    told = shares(results)
    assert told["r"] == pytest.approx(exact[0], abs=0.03)
    assert told["learning_rate"] == pytest.approx(exact[1], abs=0.03)
    answer = found(results)
    assert answer.interactions == pytest.approx(1 - sum(exact), abs=0.05)
    assert answer.noise is not None
    assert answer.noise < 0.1
    for each in answer.impacts:
        assert each.share_interval is not None
        assert each.share_interval[0] < (each.share or 0) < each.share_interval[1] + 0.02


def test_too_few_trials_have_effects_but_no_shares() -> None:
    answer = found(table(lambda r, rate: 0.01 * log(r), seeds=1))
    assert (answer.trials, answer.wanted_trials) == (20, 40)
    assert answer.interactions is None
    assert all(each.share is None and each.share_interval is None for each in answer.impacts)
    assert {each.name: each.effect for each in answer.impacts}["r"] == pytest.approx(0.01 * log(16))


def test_part_of_the_rows_the_final_run_and_other_epochs_never_count() -> None:
    full = table(lambda r, rate: 0.01 * log(r), seeds=2)
    strangers = [result(50.0 + i, r=r, learning_rate=1e-3, fraction=0.25) for i, r in enumerate(RANKS)]
    strangers += [result(60.0, stage=Stage.FINAL), result(70.0, epochs=5.0)]
    assert found(full + strangers) == found(full)


def test_diverged_trials_enter_nothing() -> None:
    full = table(lambda r, rate: 0.01 * log(r) + abs(log(rate / 1e-3)), seeds=2)
    failed = [result(inf, r=r, learning_rate=rate) for r in RANKS for rate in (1e-2, 3e-2)]
    assert found(full + failed) == found(full)


def test_a_run_that_stands_out_above_both_neighbouring_ranks_is_not_believed() -> None:
    """One seed of rank 8 fails at the best rate; another learning rate at which every rank does badly is believed."""
    context = SearchContext(
        data=DataFacts(rows=2_000, tokens=60_000, supervised_tokens=10_000),
        wishes=Wishes(margin=0.005),
    )
    good = [result(0.5, r=r, learning_rate=1e-3) for r in RANKS]
    good += [result(1.7, r=r, learning_rate=3e-2) for r in RANKS]
    good += [result(0.51, r=8, seed=1), result(0.9, r=8, fraction=0.25)]
    outcast = result(1.68, r=8, learning_rate=1e-3, seed=2)
    diverged = result(inf, r=8, learning_rate=3e-3, seed=3)
    assert believed(context, [*good, outcast, diverged]) == tuple(good)
    edges = [result(1.68, r=r, learning_rate=1e-3, seed=2) for r in (RANKS[0], RANKS[-1])]
    assert believed(context, [*good, *edges]) == (*good, *edges), "a curve may rise at its ends"


def test_an_effect_is_at_each_values_best_learning_rate() -> None:
    """Every rank is equally good at its own rate, so the rank has no effect although it has one at any single rate."""
    own = {2: 3e-3, 4: 1e-3, 8: 1e-3, 16: 3e-4, 32: 1e-4}
    answer = found(table(lambda r, rate: abs(log(rate / own[r]))))
    effects = {each.name: each.effect for each in answer.impacts}
    assert effects["r"] == pytest.approx(0.0)
    assert effects["learning_rate"] == pytest.approx(log(10))


def test_effects_compare_like_with_like() -> None:
    settings = [{"learning_rate": 1.0, "r": r, "batch_size": b} for r in (1.0, 2.0) for b in (4.0, 8.0)]
    centre = {"learning_rate": 1.0, "r": 1.0, "batch_size": 4.0}
    batch, rank = (contrast(name, settings, [0.0, 1.0, 9.0, 99.0], centre) for name in ("batch_size", "r"))
    assert batch is not None
    assert rank is not None
    assert (batch.effect, batch.worst, batch.best, batch.values) == (1.0, (1,), (0,), 2)
    assert (rank.effect, rank.worst, rank.best) == (9.0, (2,), (0,))
    assert contrast("r", settings, [0.0, 1.0, inf, 99.0], centre) is None


def test_an_interval_of_two_values_is_students_and_of_more_is_wider() -> None:
    measured = Comparison(difference=0.5, standard_error=0.1, degrees=10, margin=0.0)
    assert range_interval(measured, 2) == pytest.approx((0.5 - 0.22281, 0.5 + 0.22281), abs=1e-4)
    assert range_interval(measured, 4) == pytest.approx((0.5 - 0.3059, 0.5 + 0.3059), abs=1e-3)
    assert range_interval(replace(measured, difference=0.1), 4) == pytest.approx((0.0, 0.4059), abs=1e-3)
    assert range_interval(replace(measured, seeds_measured=False), 4) is None


@pytest.mark.parametrize("slope", [0.0, 0.02])
def test_intervals_of_effects_cover_although_the_ends_were_picked(slope: float) -> None:
    """Five ranks, two seeds each: the true range is 0, or that between the outermost ranks."""
    settings = [{"learning_rate": 1e-3, "r": float(r)} for r in RANKS for _ in range(2)]
    hits = 0
    random = np.random.default_rng(0)
    for _ in range(1000):
        losses = [slope * log(each["r"]) + 0.02 * random.standard_normal() for each in settings]
        ends = contrast("r", settings, losses, settings[0])
        assert ends is not None
        noise = pool_seed_noise([losses[i : i + 2] for i in range(0, 10, 2)])
        worst, best = ([losses[i] for i in side] for side in (ends.worst, ends.best))
        low, high = range_interval(compare_means(worst, best, noise, 0.0), ends.values) or (inf, inf)
        hits += low <= slope * log(16) <= high
    assert hits / 1000 >= 0.935
    if slope == 0:
        assert hits / 1000 <= 0.965, "exact where all are alike"


def test_an_effect_has_the_interval_of_its_seeds_and_of_its_rows() -> None:
    """Two ranks with two seeds each; rows widen it where the ranks, not the seeds, make them differ."""
    nlls = {2: (0.30, 0.32), 32: (0.20, 0.22)}
    results = [result(nll, r=r, seed=seed) for r, pair in nlls.items() for seed, nll in enumerate(pair)]
    (plain,) = found(results).impacts
    half = 4.3027 * 0.01 * 2**0.5  # Student's with 2 degrees of freedom; sd of a run .01414
    assert plain.effect_interval == pytest.approx((max(0.0, 0.1 - half), 0.1 + half), abs=1e-4)
    weights = random_table(97).supervised_counts.astype(np.float64)
    alike = [replace(each, example_nll=each.nll * weights) for each in results]
    assert found(alike).impacts[0].effect_interval == pytest.approx(plain.effect_interval, abs=1e-6)
    rows = np.repeat(np.random.default_rng(0).standard_normal((2, len(weights))) * weights, 2, axis=0)
    uneven = [
        replace(each, example_nll=each.nll * weights + noise - noise.sum() / weights.sum() * weights)
        for each, noise in zip(alike, rows, strict=True)
    ]
    (wide,) = found(uneven).impacts
    assert wide.effect == pytest.approx(plain.effect)
    assert wide.effect_interval is not None
    assert wide.effect_interval[1] > 0.1 + 1.5 * half


def test_the_learning_rates_effect_comes_from_part_of_the_rows_where_it_was_only_screened() -> None:
    """A small study: five rates on a quarter of the rows, one run of each of three ranks on all of them."""
    screened = [
        result(1.0 + log(rate / 1e-3) ** 2, learning_rate=rate, fraction=0.25)
        for rate in (3e-4, 1e-3, 3e-3, 1e-2)
    ]
    screened += [result(inf, learning_rate=3e-2, fraction=0.25), result(5.0, r=2, fraction=0.25)]
    measured = [result(0.2 + 0.01 * i, r=r) for i, r in enumerate((32, 8, 2))]
    impacts = {each.name: each for each in found(screened + measured).impacts}
    rate = impacts["learning_rate"]
    assert rate.effect == pytest.approx(log(10) ** 2)
    assert (rate.effect_rows, rate.effect_interval, len(rate.tried)) == (0.25, None, 4)
    assert impacts["r"].effect == pytest.approx(0.02)
    assert impacts["r"].effect_rows == 1
    told = impact_table(SimpleNamespace(sensitivity=found(screened + measured)))  # type: ignore[arg-type]
    assert "on 25% of the rows" in told.takeaway
    assert "without an interval, as too few settings were repeated" in told.basis
    assert "not shown: they need 20 trials" in told.basis


def test_costs_by_the_models() -> None:
    others = [result(0.2, batch_size=4), result(0.2, lora_alpha=8.0)]
    results = table(lambda r, rate: 0.01 * r) + others
    impacts = {each.name: each for each in found(results).impacts}
    assert impacts["r"].memory_bytes == (32 - 2) * 2**20
    assert impacts["r"].time_factor > 1.05
    assert impacts["batch_size"].time_factor < 1
    for name in ("learning_rate", "lora_alpha / r"):
        assert impacts[name].memory_bytes == 0
        assert impacts[name].time_factor == 1.0
    assert impacts["lora_alpha / r"].tried == (1.0, 2.0)


def test_nothing_varied() -> None:
    assert found([]).impacts == ()
    assert found([result(0.2), result(0.21, seed=1)]).impacts == ()


def test_each_value_stands_for_an_equal_part_of_the_box() -> None:
    values, (low, high) = coordinates([1, 10, 100])
    np.testing.assert_allclose(np.exp([low, *values, high]), [10**-0.5, 1, 10, 100, 10**2.5])
    _, box = coordinates([0.0, 0.05, 0.1])
    assert box == pytest.approx((-0.025, 0.125))


def test_the_takeaway_names_what_is_shown_before_what_is_only_large() -> None:
    def told(*impacts: Impact) -> str:
        found = Sensitivity(impacts=impacts, trials=9, wanted_trials=40)
        return impact_table(SimpleNamespace(sensitivity=found)).takeaway  # type: ignore[arg-type]

    rank = Impact(name="r", tried=(2.0, 8.0), effect=0.5, effect_interval=(0.0, 2.0))
    rate = Impact(name="learning_rate", tried=(1e-3, 3e-3), effect=0.2, effect_interval=(0.1, 0.3))
    assert told(rank, rate).startswith("learning_rate mattered most: 0.2000 nats (0.1000 to 0.3000)")
    assert told(rank, rate).endswith("next r with 0.5000 nats (0.0000 to 2.0000).")
    assert told(rank).startswith("Nothing is shown to have mattered beyond noise; most r: 0.5000 nats")
