"""A search on a clock: its time is that of its waves, and a budget in time buys what they leave room for."""

from dataclasses import replace
from typing import Any

import pytest

from loratune.costs.calibration import Calibration
from loratune.costs.execution import ON_CUDA
from loratune.costs.limits import Limits
from loratune.costs.memory import TIGHT
from loratune.costs.planner import LivePack, Planner
from loratune.costs.step_time import StepTime
from loratune.metrics import BUILT_IN, find
from loratune.search.expected import expected
from loratune.search.make import make_strategy
from loratune.search.strategy import Strategy
from loratune.tuning.driver import Rehearsal, rehearse
from loratune.tuning.options import SearchOptions
from loratune.tuning.pricing import Pricing
from loratune.values import (
    DataFacts,
    HyperParameters,
    ModelFacts,
    ModelProfile,
    SearchContext,
    Stage,
    Trial,
    TrialResult,
)

ROWS, TOKENS = 4000, 100_000
FACTS = SearchContext(
    data=DataFacts(
        rows=ROWS,
        tokens=TOKENS,
        supervised_tokens=11_000,
        validation_tokens=10_000,
        labels=8,
    ),
    model=ModelFacts(hidden_size=576, parameters_per_rank=300_000),
)
LAUNCH = 0.02
LAUNCHES = StepTime(points=((10.0, LAUNCH), (1e6, LAUNCH * 1.0001)), micro_batch_tokens=1e6)
"""Seconds of a step whatever its tokens."""
WORK = StepTime(points=((1.0, 1e-4), (1e6, 100.0)), micro_batch_tokens=1e6)
"""Seconds of a step in proportion to its tokens."""


TARGETS = tuple(
    (f"layers.{i}.{name}", 576, 576) for i in range(30) for name in ("q_proj", "v_proj", "up_proj")
)
ROOMY = Limits(
    model=ModelProfile(
        name="toy",
        family="llama",
        hidden_size=576,
        layers=30,
        attention_heads=9,
        vocabulary=49_152,
        parameters=135_000_000,
        embedding_parameters=28_000_000,
        targets=TARGETS,
        intermediate_size=1536,
    ),
    max_length=64,
    micro_batch_tokens=16_384,
    device_bytes=2**40,
    execution=ON_CUDA,
)


def planner(times: StepTime) -> Planner:
    return Planner(limits=ROOMY, times=times, rows=ROWS, tokens=TOKENS, slots=32)


def strategy(name: str = "evidence", budget: float = 40.0) -> Strategy:
    return make_strategy(name, FACTS.changed(budget=budget))


def taken(found: Rehearsal) -> float:
    return sum(stage.seconds for stage in found.values())


def spent(found: Rehearsal) -> float:
    return sum(stage.runs for stage in found.values())


def waves(searching: Strategy) -> list[list[TrialResult]]:
    """The search with expected results, one wave after the other."""
    found: list[list[TrialResult]] = []
    while trials := searching.ask([result for wave in found for result in wave]):
        found.append([expected(trial, searching.context) for trial in trials])
    return found


@pytest.mark.parametrize("name", ["grid", "random"])
def test_trials_that_hang_on_nothing_take_what_their_plan_says(name: str) -> None:
    searching, plans = strategy(name), planner(LAUNCHES)
    found = rehearse(searching, plans)
    trials = searching.ask([])
    assert taken(found) == pytest.approx(plans.plan(trials).seconds)
    assert sum(stage.trials for stage in found.values()) == len(trials)


@pytest.mark.parametrize("name", ["evidence", "guide", "tpe"])
def test_where_launches_are_all_that_counts_every_wave_costs_its_longest_trial(name: str) -> None:
    """A later wave may begin while an earlier one runs: at least the chain of waves that wait for results."""
    searching, plans = strategy(name), planner(LAUNCHES)
    found = rehearse(searching, plans)
    steps = [[plans.load(result.asked).steps for result in wave] for wave in waves(searching)]
    assert len(steps) > 1
    seconds = taken(found) / LAUNCH
    assert max(map(max, steps)) < seconds <= 1.001 * sum(map(max, steps))
    plan = searching.plan()
    trained = plan.cost * TOKENS
    largest = HyperParameters(r=32, lora_alpha=64, learning_rate=1e-3, batch_size=8)
    together = plans.plan_loads(plans.equal_loads(plan.trials, trained, largest), 2**60)
    assert seconds > 1.5 * together.steps


@pytest.mark.parametrize("name", ["evidence", "guide", "grid", "tpe"])
def test_where_work_is_all_that_counts_waves_cost_nothing(name: str) -> None:
    searching, plans = strategy(name), planner(WORK)
    found = rehearse(searching, plans)
    tokens = sum(
        load.steps * load.tokens
        for wave in waves(searching)
        for load in (plans.load(result.asked) for result in wave)
    )
    assert taken(found) == pytest.approx(1e-4 * tokens, rel=0.01)


@pytest.mark.parametrize("name", ["evidence", "guide"])
def test_its_packs_are_those_whose_memory_counts(name: str) -> None:
    """The widest of a stage is among them; waves that wait for results hold less than all trials at once."""
    searching, plans = strategy(name), planner(LAUNCHES)
    found = rehearse(searching, plans)
    packs = [pack for stage in found.values() for pack in stage.packs]
    for stage in found.values():
        assert stage.widest == max(len(pack.trials) for pack in stage.packs)
    for pack in packs:
        assert pack.tokens == pytest.approx(sum(each.batch_size for each in pack.trials) * TOKENS / ROWS)
    everybody = tuple(result.asked.hyper_parameters for wave in waves(searching) for result in wave)
    together = LivePack(everybody, sum(each.batch_size for each in everybody) * TOKENS / ROWS)
    assert plans.peak_bytes(packs) < plans.peak_bytes([together])


def test_it_runs_the_trials_that_the_search_would_run() -> None:
    searching = strategy()
    found = rehearse(searching, planner(LAUNCHES))
    history = [result for wave in waves(searching) for result in wave]
    assert sum(stage.trials for stage in found.values()) == len(history)
    assert spent(found) == pytest.approx(sum(result.cost for result in history))


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        *((name, metric) for name in ("evidence", "guide") for metric in BUILT_IN),
        # slow, and knows of a metric which way it is better and what its evaluations cost
        *(("tpe", metric) for metric in ("nll", "exact_match", "bleu")),
    ],
)
@pytest.mark.parametrize("budget", [1.0, 7.0, 60.0])
def test_every_search_comes_to_an_end_within_its_budget(name: str, metric: str, budget: float) -> None:
    searching = make_strategy(
        name, FACTS.changed(metric=metric, evaluation_passes=find(metric).passes(True), budget=budget)
    )
    found = rehearse(searching, planner(WORK))
    assert 0 < spent(found) <= budget * (1 + 1e-9)


def test_the_widest_pack_is_that_of_a_wave_not_of_a_stage() -> None:
    found = rehearse(strategy(), planner(LAUNCHES))
    rank = found[Stage.RANK]
    assert rank.trials > 2 * rank.widest
    assert rank.widest >= 3, "a bracket's learning rates train together"


def pricing(name: str, times: StepTime, **facts: Any) -> Pricing:
    searching = make_strategy(name, FACTS.changed(**{"budget": 40.0} | facts))
    return Pricing(
        strategy=searching,
        plan=searching.plan(),
        planner=planner(times),
        calibration=Calibration(pack=1e4, alone=1e3, forward=1e9, slots=32),
        options=SearchOptions(model="m", data="d", strategy=name),
        largest=HyperParameters(r=32, lora_alpha=64, learning_rate=1e-3, batch_size=8),
    )


def test_the_peak_counts_all_stages_and_the_final_pair() -> None:
    """The largest recipe with the largest batch tried, its best weights, and the default recipe where both fit."""
    whole = pricing("guide", LAUNCHES)
    for stage in whole.plan.stages:
        whole.stage(stage)
    expected_packs = [pack for stage in whole.rehearsal.values() for pack in stage.packs]
    assert sorted(whole.packs, key=repr) == sorted(expected_packs, key=repr)
    chosen, default = whole.final_pack.trials
    assert chosen.r == 32
    assert chosen.batch_size == max(trial.batch_size for pack in whole.packs for trial in pack.trials) > 8
    assert default == whole.options.hyper_parameters()
    parameters = sum(r * (inputs + outputs) for r in (chosen.r, default.r) for _, inputs, outputs in TARGETS)
    assert whole.final_pack.kept == 2 * 4 * parameters
    assert whole.peak_bytes >= max(
        whole.planner.peak_bytes([pack]) for pack in (*whole.packs, whole.final_pack)
    )
    alone = ROOMY.fullest([chosen]).total
    tight = replace(ROOMY, device_bytes=round(1.01 * alone / TIGHT))
    assert replace(whole, planner=replace(whole.planner, limits=tight)).final_pack.trials == (chosen,)


@pytest.mark.parametrize("times", [LAUNCHES, WORK], ids=["launches", "work"])
@pytest.mark.parametrize("name", ["evidence", "guide", "grid", "random", "tpe"])
def test_a_budget_in_time_buys_what_the_waves_leave_room_for(name: str, times: StepTime) -> None:
    """More time never buys less; and what would be too few runs for being in time is not planned."""
    whole = pricing(name, times)
    seconds = whole.expected_seconds
    assert whole.within(seconds) is whole
    before = 0.0
    for share in (0.05, 0.2, 0.3, 0.5, 0.7, 0.9):
        found = whole.within(share * seconds)
        if found is whole:  # where all trials make one wave, fewer are not faster
            continue
        assert found.expected_seconds <= share * seconds
        assert found.context.wishes.budget >= before
        assert found.context.wishes.budget > 0.45 * share * spent(whole.rehearsal)
        before = found.context.wishes.budget
    assert before > 0 or (times is LAUNCHES and name != "evidence")


@pytest.mark.parametrize(
    "facts",
    [
        {"learning_rates": (2e-4,)},
        {"ranks": (8,), "learning_rates": (1e-4, 3e-4)},
        {"tune_targets": True, "rows": 100, "tokens": 2500, "targets": TARGETS},
        {"budget": 1.5},
    ],
    ids=["one rate", "one rank", "targets", "hardly a run"],
)
@pytest.mark.parametrize("share", [0.01, 0.1, 0.4, 0.8])
def test_a_budget_in_time_that_pays_for_nothing_smaller_keeps_the_plan(
    facts: dict[str, Any], share: float
) -> None:
    whole = pricing("evidence", LAUNCHES, **facts)
    found = whole.within(share * whole.expected_seconds)
    assert found is whole or found.expected_seconds <= share * whole.expected_seconds


def test_trials_of_dora_take_as_much_longer_as_was_measured() -> None:
    plain = HyperParameters(r=8, lora_alpha=16, learning_rate=1e-3, batch_size=8)
    slower = replace(planner(WORK), dora=2.5)
    plans = {
        each.use_dora: slower.plan([Trial(hyper_parameters=each, seed=seed) for seed in range(3)])
        for each in (plain, replace(plain, use_dora=True))
    }
    assert plans[True].seconds == pytest.approx(2.5 * plans[False].seconds, rel=1e-3)
    assert plans[True].tokens == plans[False].tokens, "a step holds what it holds"
    assert planner(WORK).load(Trial(hyper_parameters=replace(plain, use_dora=True))).steps == ROWS / 8
