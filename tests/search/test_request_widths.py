"""Where width is nearly free a search makes few requests: later stages share one, and what was cut decides alike."""

from functools import cache

import pytest

from loratune.search.make import make_strategy
from loratune.search.waves import is_wide
from loratune.values import HyperParameters, SearchContext, Stage, Trial, TrialResult
from loratune.values.hyperparameters import PUBLISHED_RATES
from request_widths import StagedRunner
from worlds import WORLDS

LATER = {Stage.BATCH, Stage.ALPHA, Stage.EPOCHS}
RUNNER = StagedRunner(WORLDS["power law, noisy"], 0)
CONTEXT = RUNNER.told(10.0, 0.011)


class Gains(StagedRunner):
    """Another alpha and another number of passes are each far better than what ranks are compared with."""

    def nll(self, context: SearchContext, setting: HyperParameters, fraction: float = 1.0) -> float:
        better = (setting.alpha_ratio == 1.0) + 2 * (setting.epochs == 2.0)
        return super().nll(context, setting, fraction) - 0.05 * better


@cache
def played(runner: StagedRunner) -> tuple[tuple[Trial, ...], ...]:
    """The requests of a whole search."""
    strategy, history, requests = make_strategy("evidence", CONTEXT), list[TrialResult](), []
    while trials := strategy.ask(history):
        requests.append(trials)
        history += runner.run(trials, CONTEXT)
    return tuple(requests)


def results(runner: StagedRunner) -> list[TrialResult]:
    return [result for trials in played(runner) for result in runner.run(trials, CONTEXT)]


def test_ranks_twice_then_everything_else_at_once() -> None:
    assert is_wide(CONTEXT)
    first, second, third = played(RUNNER)
    assert {trial.stage for trial in (*first, *second)} == {Stage.RANK}
    assert len(second) >= 12
    assert len({trial.seed for trial in second}) >= 4, (
        "new rates with the search's seed, repeats with the test's"
    )
    assert {trial.stage for trial in third} >= LATER
    later = [trial for trial in third if trial.stage in LATER]
    assert len({trial.hyper_parameters.r for trial in later}) == 1
    assert CONTEXT.wave_cost(third) < sum(
        CONTEXT.wave_cost([t for t in third if t.stage is s]) for s in LATER
    )
    assert sum(map(CONTEXT.wave_cost, (first, second, third))) <= 10 + 1e-6


def test_all_that_ran_side_by_side_is_judged() -> None:
    decision = make_strategy("evidence", CONTEXT).decide(results(RUNNER))
    assert {stage.name for stage in decision.stages} >= {str(stage) for stage in LATER}
    assert not [each.claim for each in decision.evidence if "were not run" in each.claim]


def test_of_two_better_alternatives_the_best_alone_is_taken() -> None:
    """They never ran together, and the evidence says so."""
    runner = Gains(WORLDS["power law"], 0)
    decision = make_strategy("evidence", CONTEXT).decide(results(runner))
    assert decision.hyper_parameters.epochs == 2.0
    assert decision.hyper_parameters.alpha_ratio == 2.0
    claims = " ".join(each.claim for each in decision.evidence)
    assert "2 epochs (learning rate" in claims
    assert "is taken: it is better than 3 epochs" in claims
    assert "is better than alpha" in claims
    assert "did not run beside what is taken" in claims


@pytest.mark.parametrize("kept", [7, 33, 60])
def test_a_cut_search_goes_on_alike(kept: int) -> None:
    """After any number of results, those still running included."""
    strategy, whole = make_strategy("evidence", CONTEXT), results(RUNNER)
    history = whole[:kept]
    running = played(RUNNER)[0][kept:]
    if running:
        assert strategy.ask(history, running) == ()
    while trials := strategy.ask(history):
        history += RUNNER.run(trials, CONTEXT)
    assert [result.asked.key for result in history] == [result.asked.key for result in whole]
    assert strategy.decide(history).hyper_parameters == strategy.decide(whole).hyper_parameters


def rates_at_16(context: SearchContext) -> set[float]:
    trials = make_strategy("evidence", context).ask([])
    return {t.hyper_parameters.learning_rate for t in trials if t.hyper_parameters.r == 16}


def test_the_first_request_has_the_usual_grid() -> None:
    """At rank 16, by a rate within half a step of each of the four."""
    assert all(
        any(1 / 2**0.5 < tried / rate < 2**0.5 for tried in rates_at_16(CONTEXT)) for rate in PUBLISHED_RATES
    )
    far = CONTEXT.changed(rate_factor=300.0)  # ladders that are nowhere near
    assert rates_at_16(far) >= set(PUBLISHED_RATES)


@pytest.mark.parametrize(
    "named", [{"ranks": (4, 8)}, {"learning_rates": (1e-3, 3e-3)}, {"batch_sizes": (4,)}, {"pace": None}]
)
def test_it_is_not_run_where_the_user_named_others_or_width_costs(named: dict[str, object]) -> None:
    assert 2e-4 not in rates_at_16(CONTEXT.changed(**named))
