"""Budgets as text, and what a measured speed makes of them."""

import re
from dataclasses import replace

import numpy as np
import pytest

from loratune.costs.budget import Budget, coarse, in_words
from loratune.costs.calibration import Calibration
from loratune.costs.readings import Evaluations, Readings, plan_evaluations, plan_readings
from loratune.errors import BudgetError
from loratune.metrics import find
from loratune.values import DataFacts, HyperParameters, SearchContext, Trial, Wishes

SPEED = Calibration(pack=400.0, alone=200.0, forward=1000.0, slots=8)
FACTS = SearchContext(
    data=DataFacts(
        rows=1000,
        tokens=30_000,
        supervised_tokens=2000,
        validation_tokens=6000,
        labels=4,
    ),
)


@pytest.mark.parametrize(
    ("text", "seconds", "runs"),
    [("90s", 90, None), ("30m", 1800, None), ("1.5h", 5400, None), ("3x", None, 3)],
)
def test_parse(text: str, seconds: float | None, runs: float | None) -> None:
    assert Budget.parse(text) == Budget(seconds=seconds, runs=runs)


def test_auto_is_five_runs_and_a_minute_at_least_on_a_gpu() -> None:
    budget = Budget.parse("auto")
    assert budget == Budget(runs=5, least_seconds=60)
    assert budget.runs_on(alone=2.0, gpu=False) == 5
    assert budget.runs_on(alone=100.0, gpu=True) == 5
    assert 15 < (budget.runs_on(alone=2.0, gpu=True) or 0) <= 0.85 * 24, (
        "a minute for everything, 12 s to the first step, and some of it kept back as in a budget in time"
    )
    assert 12 < (budget.runs_on(alone=2.0, gpu=True, others=8) or 0) <= 0.85 * 20
    assert budget.runs_on(alone=2.0, gpu=True, others=100) == 5
    assert Budget.parse("3x").runs_on(alone=2.0, gpu=True) == 3
    assert Budget.parse("90s").runs_on(alone=2.0, gpu=True) is None


@pytest.mark.parametrize("text", ["", "30", "m", "-3x", "0x", "3 weeks", "1e3x", f"{'9' * 400}h"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(BudgetError, match="30m"):
        Budget.parse(text)


def test_coarse_steps() -> None:
    assert coarse(0) == 0
    for value in (0.3, 1.0, 7.7, 1234.0):
        assert value / 2 ** (1 / 3) < coarse(value) <= value * (1 + 1e-12)
    same = sum(coarse(1.05 * v) == coarse(0.95 * v) for v in (1 + i / 100 for i in range(100)))
    assert same >= 50, "a calibration that is 5 % off seldom changes the plan"


@pytest.mark.parametrize("metric", ["nll", "accuracy"])
@pytest.mark.parametrize("forward", [500.0, 1000.0, 4000.0])
def test_a_time_budget_is_kept(metric: str, forward: float) -> None:
    """Whatever is spent on full trials or on cheap ones, the predicted time stays within the budget."""
    context, speed = (
        FACTS.changed(evaluation_passes=find(metric).passes(True)),
        replace(SPEED, forward=forward),
    )
    left = 3600 - 60 - speed.final_seconds(context, 6000, 200)
    runs = speed.runs_within(speed.seconds_within(3600, context, 6000, 200, 60), context)
    for fraction in (0.1, 1.0):
        trial = Trial(
            hyper_parameters=HyperParameters(r=8, lora_alpha=16, learning_rate=1e-3, batch_size=8),
            fraction=fraction,
        )
        trials = int(runs / context.cost(trial))
        seconds = speed.search_seconds(context, trials * context.cost(trial), trials)
        assert 0.2 * left < seconds <= left


@pytest.mark.parametrize("rank", [8, 64, 256])
def test_what_comes_between_search_and_final_run_fits_too(rank: int) -> None:
    """The truncation curve, and three more runs where a rank for each layer is asked for."""
    plain, further = (
        SPEED.runs_within(SPEED.seconds_within(3300, FACTS, 6000, 200, 60, n), FACTS) for n in (0, 3)
    )
    trial = Trial(hyper_parameters=HyperParameters(r=8, lora_alpha=16, learning_rate=1e-3, batch_size=8))
    trials = int(further / FACTS.cost(trial))
    curve = SPEED.truncation_seconds(FACTS.changed(budget=further), rank, 200)
    seconds = SPEED.search_seconds(FACTS, further, trials) + SPEED.search_seconds(FACTS, 3, 3) + curve
    assert seconds + SPEED.final_seconds(FACTS, 6000, 200) + 60 <= 3300
    assert further < plain
    assert curve > 0


def test_one_slot_trains_the_final_run_no_faster_than_a_pack() -> None:
    """Both of its trials, one after the other."""
    one, many = (replace(SPEED, pack=200.0, slots=n).final_seconds(FACTS, 6000, 200) for n in (1, 8))
    assert one == many
    assert one > 2 * FACTS.wishes.epochs * FACTS.data.tokens / 200


def test_the_final_pair_is_priced_by_its_own_steps() -> None:
    """Where launches are all that counts a step of two trials takes what one takes, however short the rows are that
    one trial alone was measured on."""
    rows, launch = 6400, 0.02
    tokens = 16 * 200.0  # of a trial's step
    launches = replace(
        SPEED,
        pack=500_000.0,
        alone=16_000.0,  # of steps of 320 tokens
        forward=1e9,
        slots=64,
        steps=((320.0, launch), (2 * tokens, launch), (64 * tokens, 32 * launch)),
        micro_batch_tokens=int(64 * tokens),
    )
    context = FACTS.changed(rows=rows, tokens=int(rows * 200), labels=0)
    steps = rows / 16
    assert launches.final_seconds(context, 6000, 200) == pytest.approx(steps * launch, rel=0.01)
    apart = launches.final_seconds(context, 6000, 200, devices=2)
    assert apart == pytest.approx(steps * launch, rel=0.01)
    one_slot = replace(launches, slots=1).final_seconds(context, 6000, 200)
    assert one_slot == pytest.approx(2 * steps * launch, rel=0.01)


def test_a_small_budget_evaluates_fewer_rows() -> None:
    large, small = (SPEED.truncation_seconds(FACTS.changed(budget=b), 64, 200) for b in (1000.0, 0.1))
    assert large == pytest.approx(12 * 6000 / 1000)
    assert small == pytest.approx(large * 64 / 200)


def test_no_time_to_search() -> None:
    with pytest.raises(BudgetError, match="raise --budget"):
        SPEED.seconds_within(60, FACTS, 6000, 200, 30)
    assert SPEED.seconds_within(600, FACTS, 6000, 200, 30) > SPEED.seconds_within(
        600, FACTS, 6000, 200, 30, writing=40
    )
    with pytest.raises(
        BudgetError, match=r"loading took 30 s, .*models write about 500 s; .*--max-new-tokens"
    ):
        SPEED.seconds_within(60, FACTS, 6000, 200, 30, writing=500)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.2, "1s"), (90.0, "90s"), (121.0, "3m"), (7200.0, "120m"), (7201.0, "2.1h"), (36000.0, "10h")],
)
def test_a_time_in_the_words_of_the_option(seconds: float, told: str) -> None:
    assert in_words(seconds) == told
    assert Budget.parse(told).seconds >= seconds  # type: ignore[operator]


def test_the_smallest_budget_that_is_named_works() -> None:
    with pytest.raises(BudgetError) as refused:
        SPEED.seconds_within(60, FACTS, 6000, 200, 30)
    (least,) = re.findall(r"at least (\w+)", str(refused.value))
    seconds = Budget.parse(least).seconds
    assert seconds is not None
    assert SPEED.runs_within(SPEED.seconds_within(seconds, FACTS, 6000, 200, 30), FACTS) >= 1


def test_scoring_labels_is_paid_for() -> None:
    trial = Trial(hyper_parameters=HyperParameters(r=8, lora_alpha=16, learning_rate=1e-3, batch_size=8))
    labelled = FACTS.changed(evaluation_passes=find("accuracy").passes(True))
    assert labelled.cost(trial) == FACTS.cost(trial) == 1
    quarter = replace(trial, fraction=0.25)
    assert labelled.cost(quarter) > FACTS.cost(quarter)
    assert labelled.full_run - FACTS.full_run == 2 * 0.5 * FACTS.data.validation_tokens


@pytest.mark.parametrize(
    ("rows", "validation_rows", "expected"),
    [
        (6000, 300, Evaluations(count=10, rows=114, evaluated_rows=1440, share=0.12)),
        (100_000, 300, Evaluations(count=10, rows=300, evaluated_rows=3000, share=0.015)),
        (3000, 300, Evaluations(count=6, rows=70, evaluated_rows=720, share=0.12)),
        (960, 24, Evaluations(count=9, rows=24, evaluated_rows=216, share=0.1125)),
        (160, 24, Evaluations(count=3, rows=24, evaluated_rows=72, share=0.225)),
    ],
    ids=[
        "three epochs of 2,000",
        "all rows at every look",
        "fewer looks",
        "few validation rows",
        "too few rows",
    ],
)
def test_the_final_run_looks_as_often_as_it_can_afford(
    rows: int, validation_rows: int, expected: Evaluations
) -> None:
    found = plan_evaluations(15 * rows, 15 * validation_rows, validation_rows)
    assert found == replace(expected, share=pytest.approx(expected.share, abs=1e-3))  # type: ignore[arg-type]


def test_evaluation_stays_within_its_share_of_the_final_run() -> None:
    """Wherever it looks more often than the three times that it looks in any case."""
    many = 0
    for rows in np.geomspace(100, 1e6, 60).round():
        for share in (0.02, 0.1, 0.3):
            held_out = int(max(8, share * rows))
            looks = plan_evaluations(20 * rows, 20 * held_out, held_out)
            assert looks.rows <= held_out
            assert looks.rows >= min(64, held_out)
            if looks.count > 3:
                many += 1
                assert looks.share <= 0.12
    assert many > 50


@pytest.mark.parametrize(
    ("rows", "validation_rows", "most", "expected"),
    [
        (10_000, 1500, 4, Readings(count=4, rows=256)),
        (1000, 150, 4, Readings(count=4, rows=66)),
        (1000, 150, 8, Readings(count=8, rows=28)),
        (160, 24, 4, Readings(count=3, rows=16)),
        (160, 24, 8, Readings(count=3, rows=16)),
        (40, 6, 4, Readings(count=3, rows=16)),
    ],
)
def test_readings_are_fewer_where_rows_are_few(
    rows: int, validation_rows: int, most: int, expected: Readings
) -> None:
    """One epoch of rows of 30 tokens: a tenth of training is a fifth as many rows read."""
    facts = SearchContext(
        data=DataFacts(
            rows=rows,
            tokens=30 * rows,
            supervised_tokens=rows,
            validation_tokens=30 * validation_rows,
        ),
        wishes=Wishes(epochs=1),
    )
    found = plan_readings(facts, validation_rows, most)
    assert found == expected
    read = (found.count - 1) * found.rows + validation_rows
    if rows >= 160:  # a row read costs half of one trained on
        assert read / 2 <= 0.15 * (rows + read / 2)
