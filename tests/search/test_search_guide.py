"""The published recipe, its ranks, grid and elbow, to the letter."""

import pytest

from loratune.search.guide import GuideStrategy, choose_rank
from loratune.values import (
    DataFacts,
    HyperParameters,
    SearchContext,
    Stage,
    Trial,
    TrialResult,
    Wishes,
)

CONTEXT = SearchContext(
    data=DataFacts(rows=2_000, tokens=60_000, supervised_tokens=10_000),
    wishes=Wishes(budget=100.0),
)


def result(trial: Trial, nll: float) -> TrialResult:
    return TrialResult(asked=trial, trial=trial, nll=nll, cost=CONTEXT.cost(trial))


def test_rank_curve_is_the_recipes() -> None:
    trials = GuideStrategy(CONTEXT).ask([])
    settings = [trial.hyper_parameters for trial in trials]
    assert [s.r for s in settings] == [4, 8, 16, 32, 64]
    assert all(s.lora_alpha == 2 * s.r and s.learning_rate == 5e-4 for s in settings)
    assert all(s.lora_dropout == 0.05 and s.target_modules == ("q_proj", "v_proj") for s in settings)
    assert {trial.fraction for trial in trials} == {0.5}


def test_named_targets_are_used() -> None:
    context = CONTEXT.changed(target_modules=("c_attn",))
    assert GuideStrategy(context).ask([])[0].hyper_parameters.target_modules == ("c_attn",)


def test_grid_at_the_elbow_then_alphas_then_the_best() -> None:
    strategy = GuideStrategy(CONTEXT)
    curve = dict(zip((4, 8, 16, 32, 64), (1.0, 0.6, 0.58, 0.57, 0.56), strict=True))
    history = [result(trial, curve[trial.hyper_parameters.r]) for trial in strategy.ask([])]
    grid = strategy.ask(history)
    assert {trial.hyper_parameters.r for trial in grid} == {8}
    cells = {(t.hyper_parameters.learning_rate, t.hyper_parameters.batch_size) for t in grid}
    assert cells == {(rate, size) for rate in (1e-4, 5e-4, 1e-3, 5e-3) for size in (4, 8, 16, 32)}
    assert all(trial.fraction == 1 and trial.stage is Stage.BATCH for trial in grid)

    def grid_nll(setting: HyperParameters) -> float:
        return 0.5 if (setting.learning_rate, setting.batch_size) == (1e-3, 8) else 0.6

    history += [result(trial, grid_nll(trial.hyper_parameters)) for trial in grid]
    alphas = strategy.ask(history)
    # 2r was run in the grid already
    assert sorted(trial.hyper_parameters.lora_alpha for trial in alphas) == [8, 12, 24]
    history += [result(trial, 0.4 if trial.hyper_parameters.lora_alpha == 12 else 0.7) for trial in alphas]
    chosen = strategy.decide(history).hyper_parameters
    assert (chosen.r, chosen.lora_alpha, chosen.learning_rate, chosen.batch_size) == (8, 12, 1e-3, 8)


def test_grid_skips_what_does_not_fit_in_memory() -> None:
    plan = GuideStrategy(CONTEXT.changed(largest_batch=8)).plan()
    assert "Batch size 16 does not fit in memory." in plan.dropped
    assert plan.stages[1].trials == 8


def test_grid_skips_batches_of_more_than_all_rows() -> None:
    plan = GuideStrategy(CONTEXT.changed(rows=20, largest_batch=16)).plan()
    assert "Batch size 32 is more than the 20 training rows." in plan.dropped
    assert not any("memory" in sentence for sentence in plan.dropped)
    assert plan.stages[1].trials == 12
    few = GuideStrategy(CONTEXT.changed(rows=3))
    assert {trial.hyper_parameters.batch_size for trial in few.ask([])} <= {1, 2, 3}
    assert few.plan().stages[1].trials == 4


@pytest.mark.parametrize(("budget", "fraction"), [(100.0, 0.5), (22.2, 0.4), (21.0, 0.2)])
def test_the_rank_curve_gives_up_rows_first(budget: float, fraction: float) -> None:
    trials = GuideStrategy(CONTEXT.changed(budget=budget)).ask([])
    assert {trial.fraction for trial in trials} == {fraction}


def test_without_an_elbow_the_smallest_rank_within_one_per_cent() -> None:
    trials = GuideStrategy(CONTEXT).ask([])
    flat = [result(trial, nll) for trial, nll in zip(trials, (1.2, 1.0, 1.0, 1.0, 0.995), strict=True)]
    rank, claim = choose_rank(CONTEXT, [flat[0], flat[4]], (4, 64))
    assert (rank, "no elbow" in claim.claim) == (64, True)
    rank, claim = choose_rank(CONTEXT, [flat[1], flat[4]], (8, 64))
    assert rank == 8
