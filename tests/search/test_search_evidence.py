"""The default strategy on tables with known truth, and on the measured one where it is at hand."""

from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

import numpy as np
import pytest

from loratune.maths.noninferiority import compare_means, pool_seed_noise
from loratune.search.effort import fit_effort
from loratune.search.evidence import EvidenceStrategy
from loratune.search.field import Field
from loratune.search.procedure import Ledger
from loratune.search.rank_choice import choice
from loratune.search.ranks import RankStage
from loratune.search.space import candidate_ranks, hyper_parameters, screening_fraction, usual_rate
from loratune.values import (
    CurvePoint,
    DataFacts,
    Decision,
    HyperParameters,
    ModelFacts,
    SearchContext,
    Stage,
    Trial,
    TrialResult,
    TrialState,
)
from planted import RANKS, Planted
from play import play
from simulated import Cell, TableRunner

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
BANKING = SHARED / "grid_banking77.csv"
MARGIN = 0.005


def search(
    path: Path, *, budget: float, seed: int = 0, task: str = "planted"
) -> tuple[Decision, tuple[TrialResult, ...]]:
    runner = TableRunner.open(path, task)
    strategy = EvidenceStrategy(runner.context(margin=MARGIN, budget=budget, seed=seed))
    history = play(strategy, runner)
    return strategy.decide(history), history


@pytest.mark.parametrize("scale", [0.01, 0.04, 0.15])
def test_finds_the_planted_rank_and_learning_rate(scale: float, tmp_path: Path) -> None:
    truth = Planted(scale=scale)
    table = truth.write(tmp_path / "planted.csv")
    decision, _ = search(table, budget=30)
    chosen = decision.hyper_parameters
    smallest = truth.smallest_adequate(MARGIN)
    assert smallest <= chosen.r <= 2 * smallest
    assert truth.nll(chosen.r, chosen.learning_rate) <= truth.best(chosen.r) + 0.001
    shown = [c.claim for c in decision.evidence if c.holds and "is non-inferior" in c.claim]
    assert any(claim.startswith(f"Rank {chosen.r} ") for claim in shown) == (chosen.r < max(RANKS))


@pytest.mark.parametrize("seed", range(4))
def test_a_small_budget_never_takes_an_inferior_rank(seed: int, tmp_path: Path) -> None:
    truth = Planted()
    decision, history = search(truth.write(tmp_path / "planted.csv", seed), budget=5, seed=seed)
    assert decision.hyper_parameters.r >= truth.smallest_adequate(MARGIN)
    assert sum(result.cost for result in history) <= 5


def test_without_a_rank_effect_a_small_rank_is_enough(tmp_path: Path) -> None:
    decision, _ = search(Planted(scale=0.0).write(tmp_path / "flat.csv"), budget=40)
    assert decision.hyper_parameters.r <= 2


def test_part_of_the_rows_is_for_budgets_that_pay_for_no_bracket_and_judges_no_rank(tmp_path: Path) -> None:
    """Early readings of the planted table hide the rank; the answer must not follow them."""
    path = Planted(scale=0.15).write(tmp_path / "planted.csv")
    _, history = search(path, budget=8)
    assert {result.trial.fraction for result in history} == {1.0}
    decision, history = search(path, budget=2)
    assert len({result.asked.hyper_parameters.r for result in history if result.asked.fraction < 1}) == 1
    assert not any("non-inferior" in claim.claim for claim in decision.evidence)


def test_compared_runs_have_other_seeds_than_those_that_chose(tmp_path: Path) -> None:
    decision, history = search(Planted().write(tmp_path / "planted.csv"), budget=30)
    tested: dict[int, set[int]] = {}
    for trial in (result.asked for result in history if result.asked.stage is Stage.RANK):
        if trial.seed != 0:
            tested.setdefault(trial.hyper_parameters.r, set()).add(trial.seed)
    assert {max(RANKS), decision.hyper_parameters.r} <= set(tested)
    assert all(len(seeds) >= 2 for seeds in tested.values())


def test_bracket_is_widened_until_the_best_is_inside(tmp_path: Path) -> None:
    """The optimum lies six times above the law's centre."""
    truth = Planted(rate_at_16=3e-3)
    decision, _ = search(truth.write(tmp_path / "high.csv"), budget=30)
    claim = next(claim for claim in decision.evidence if "learning rate at rank" in claim.claim)
    assert claim.holds
    chosen = decision.hyper_parameters
    assert truth.nll(chosen.r, chosen.learning_rate) <= truth.best(chosen.r) + 0.005


def test_survives_a_diverging_corner(tmp_path: Path) -> None:
    truth = Planted(diverges_above=2.0, rate_at_16=3e-4)
    decision, history = search(truth.write(tmp_path / "cliff.csv"), budget=20)
    assert any(not result.finished for result in history)
    chosen = decision.hyper_parameters
    assert chosen.r >= truth.smallest_adequate(MARGIN)
    assert truth.nll(chosen.r, chosen.learning_rate) <= truth.best(chosen.r) + 0.02


def test_between_the_best_rate_and_one_that_diverged_another_is_tried(tmp_path: Path) -> None:
    """The optimum of rank 64 lies just below an edge, above which a ladder of threes steps."""
    truth = Planted(diverges_above=1.5, rate_at_16=1e-3)
    _, history = search(truth.write(tmp_path / "edge.csv"), budget=6)
    asked = [x.asked.hyper_parameters.learning_rate for x in history if x.asked.hyper_parameters.r == 64]
    failed = min(x.asked.hyper_parameters.learning_rate for x in history if not x.finished)
    below = [rate for rate in asked if rate < failed]
    assert max(below) > failed / 2


@dataclass
class FailsOnce:
    """The rule of a flattening curve, in which the first full run of one rank fails."""

    r: int
    nll: float
    failed: HyperParameters | None = None

    def __call__(self, trial: Trial, context: SearchContext) -> TrialResult:
        setting = trial.hyper_parameters
        if setting.r == self.r and self.failed is None:
            self.failed = setting
        truth = Planted().nll(setting.r, setting.learning_rate)
        nll = self.nll if setting == self.failed else truth + 1e-4 * (trial.seed % 3)
        state = TrialState.COMPLETE if nll < inf else TrialState.DIVERGED
        return TrialResult(asked=trial, trial=trial, nll=nll, state=state, cost=context.cost(trial))


@pytest.mark.parametrize("nll", [inf, 1.68])
def test_a_full_run_that_fails_is_repeated_at_a_third_of_its_rate(nll: float) -> None:
    """Rank 16 on the way down from 64 diverges, or stands out between .50 and .51."""
    context = facts(budget=16.0, ranks=(4, 16, 64), margin=MARGIN)
    world, strategy, history = FailsOnce(16, nll), EvidenceStrategy(context), list[TrialResult]()
    while trials := strategy.ask(history):
        history += [world(trial, context) for trial in trials]
    assert world.failed is not None
    rates = [x.asked.hyper_parameters.learning_rate for x in history if x.asked.hyper_parameters.r == 16]
    assert rates[:2] == pytest.approx([world.failed.learning_rate, world.failed.learning_rate / 3], rel=0.1)
    decision = strategy.decide(history)
    assert decision.hyper_parameters != world.failed
    details = decision.stages[0].details
    assert all(each["loss"] < 0.6 for each in details["ranks"]), "the failure is in no curve of ranks"


def test_a_setting_of_which_one_run_diverged_is_not_adopted() -> None:
    """Alpha 3r is better by .05, but one of its seeds diverges."""
    context = facts(budget=40.0, ranks=(4, 8, 16))
    strategy, history = EvidenceStrategy(context), list[TrialResult]()
    while trials := strategy.ask(history):
        for trial in trials:
            found = answer(trial, context)
            again = sum(x.asked.hyper_parameters == trial.hyper_parameters for x in history)
            if trial.hyper_parameters.scaling == 3 and again:
                found = replace(found, nll=inf, state=TrialState.DIVERGED)
            history.append(found)
    assert any(not result.finished for result in history)
    assert strategy.decide(history).hyper_parameters.scaling == 2


def test_what_the_margin_tolerates_buys_no_larger_rank() -> None:
    """Rank 4 loses .8 of the margin against 64, known without doubt: tolerated. At 2.5 margins it is not."""
    for scale, chosen in ((0.8, 4), (2.5, 64)):
        context = facts(budget=30.0, ranks=(4, 64), margin=MARGIN)
        stage = RankStage(context, fit_effort(context)[0], Ledger(budget=30.0))
        results = []
        for r, extra in ((4, scale * MARGIN), (64, 0.0)):
            centre = usual_rate(context, r, stage.batch)
            for factor, worse in ((1 / 3, 0.05), (1.0, 0.0), (3.0, 0.05)):
                for seed in range(4):
                    setting = hyper_parameters(context, r=r, rate=factor * centre, batch=stage.batch)
                    asked = Trial(hyper_parameters=setting, seed=seed)
                    nll = 0.5 + extra + worse + 1e-5 * seed
                    results.append(TrialResult(asked=asked, trial=asked, nll=nll))
        assert choice(Field(context, stage.batch, results)) == chosen


def test_noise_that_hides_everything_is_told(tmp_path: Path) -> None:
    decision, _ = search(Planted(noise=0.05, scale=0.01).write(tmp_path / "noisy.csv"), budget=12)
    claims = [claim for claim in decision.evidence if "non-inferior" in claim.claim]
    assert not any(claim.holds for claim in claims)
    (taken,) = [claim for claim in decision.evidence if "is taken because" in claim.claim]
    assert taken.holds is None


def test_equal_ranks_are_seldom_called_inferior(tmp_path: Path) -> None:
    """A/A: all ranks are equal and two seeds can be compared; each claim of a difference is false."""
    false = []
    for seed in range(12):
        path = Planted(scale=0.0, noise=2e-3, seeds=3).write(tmp_path / f"{seed}.csv", seed)
        decision, _ = search(path, budget=30)
        false += ["no, it loses" in c.claim for c in decision.evidence if "non-inferior" in c.claim]
    assert len(false) >= 12
    assert np.mean(false) <= 0.05


def test_a_large_budget_is_thorough(tmp_path: Path) -> None:
    context = (
        TableRunner.open(Planted().write(tmp_path / "planted.csv"), "planted").context().changed(seeds=0)
    )
    context = context.changed(alpha_ratios=(), batch_sizes=(), largest_batch=64, budget=40.0)
    costs = {stage.name: stage.trials for stage in EvidenceStrategy(context).plan().stages}
    assert costs[Stage.RANK] >= 12
    assert costs[Stage.BATCH] >= 2
    assert costs[Stage.ALPHA] >= 2


def facts(**wishes: object) -> SearchContext:
    data = DataFacts(rows=2_000, tokens=60_000, supervised_tokens=10_000)
    return SearchContext(data=data, model=ModelFacts(hidden_size=576)).changed(**wishes)


def answer(trial: Trial, context: SearchContext, **other: object) -> TrialResult:
    """A run whose NLL falls with alpha's distance from 3r and depends on nothing else, noise by seed."""
    setting = trial.hyper_parameters
    nll = 0.5 + 0.05 * abs(setting.lora_alpha / setting.r - 3) + 1e-4 * (trial.seed % 3)
    nll -= 0.05 * (setting.lora_dropout == 0.1)
    return TrialResult(asked=trial, trial=trial, nll=nll, cost=context.cost(trial), **other)  # type: ignore[arg-type]


def play_rule(context: SearchContext, **other: object) -> tuple[Decision, list[TrialResult]]:
    strategy, history = EvidenceStrategy(context), list[TrialResult]()
    while trials := strategy.ask(history):
        history += [answer(trial, context, **other) for trial in trials]
    return strategy.decide(history), history


def test_a_better_alpha_is_adopted() -> None:
    decision, _ = play_rule(facts(budget=40.0, ranks=(4, 8, 16)))
    setting = decision.hyper_parameters
    assert setting.lora_alpha == 3 * setting.r
    assert [c.holds for c in decision.evidence if c.claim.startswith("Alpha is flat")] == [False]
    taken = next(
        c for c in decision.evidence if c.claim.startswith(f"Alpha {setting.lora_alpha:g} (learning")
    )
    assert taken.claim.endswith(f"is taken: it is better than alpha {2 * setting.r}.")
    assert taken.holds
    assert taken.value == pytest.approx(-0.05, abs=1e-3)
    others = [c for c in decision.evidence if c.claim.startswith("Alpha ") and "is not chosen" in c.claim]
    assert [c.holds for c in others] == [True]


def test_alternatives_that_the_budget_left_out_are_counted() -> None:
    """Two alphas are planned; what went before them cost so much that one can be run."""
    context = facts(budget=40.0, ranks=(4, 8, 16))
    strategy, history = EvidenceStrategy(context), list[TrialResult]()
    while (trials := strategy.ask(history))[0].stage is not Stage.ALPHA:
        history += [answer(trial, context) for trial in trials]
    assert len(trials) == 2
    left = context.wishes.budget - sum(result.cost for result in history)
    dear = history[-1].cost + left - 1.5 * context.cost(trials[0])
    history[-1] = replace(history[-1], cost=dear)
    (affordable,) = strategy.ask(history)
    history.append(answer(affordable, context))
    assert strategy.ask(history) == ()
    claims = [claim.claim for claim in strategy.decide(history).evidence]
    assert "Alpha: 1 of 2 alternatives were not run: the budget was spent." in claims


def test_alternatives_that_were_cut_short_are_counted() -> None:
    context = facts(budget=40.0, ranks=(4, 8, 16))
    strategy, history = EvidenceStrategy(context), list[TrialResult]()
    while (trials := strategy.ask(history))[0].stage is not Stage.ALPHA:
        history += [answer(trial, context) for trial in trials]
    claims = [claim.claim for claim in strategy.decide(history).evidence]
    assert "Alpha: 2 of 2 alternatives were not run: the search was cut short." in claims


def test_regularisation_only_where_over_fitting_shows() -> None:
    calm, calm_history = play_rule(facts(budget=40.0, ranks=(4, 8)))
    assert not any(r.asked.stage is Stage.REGULARISATION for r in calm_history)
    assert calm.hyper_parameters.lora_dropout == 0

    def point(step: int, train: float, validation: float) -> CurvePoint:
        return CurvePoint(step=step, fraction=step / 4, train_nll=train, validation_nll=validation)

    rising = (point(1, 0.6, 0.5), point(2, 0.4, 0.55), point(3, 0.2, 0.6), point(4, 0.1, 0.7))
    fitted, history = play_rule(facts(budget=40.0, ranks=(4, 8)), curve=rising)
    assert any(r.asked.stage is Stage.REGULARISATION for r in history)
    assert fitted.hyper_parameters.lora_dropout == 0.1


def test_regularisation_on_request() -> None:
    _, history = play_rule(facts(budget=60.0, ranks=(4, 8), regularise=True))
    tried = {r.asked.hyper_parameters.lora_dropout for r in history}
    assert tried == {0.0, 0.05, 0.1}


def test_a_screen_has_at_least_25_steps() -> None:
    assert screening_fraction(facts().changed(rows=400), 16, 1.0) == 1.0
    larger = facts().changed(rows=3_000)
    assert larger.data.rows * screening_fraction(larger, 16, 0.1) / 16 == pytest.approx(25, abs=0.5)
    assert screening_fraction(larger, 16, 1.5) == 0.5


def test_candidate_ranks_stay_below_the_smallest_layer() -> None:
    assert max(candidate_ranks(facts().changed(largest_rank=24))) <= 24


@pytest.mark.skipif(not BANKING.exists(), reason="the measured grid is not at hand")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_measured_grid_at_a_tenth_of_its_cost(seed: int) -> None:
    """152 runs in all; noise (sd .003–.013 nats between seeds) hides differences of the margin's size."""
    runner = TableRunner.open(BANKING, "banking77")
    strategy = EvidenceStrategy(runner.context(margin=MARGIN, budget=15, seed=seed))
    history = play(strategy, runner)
    chosen = runner.snap(strategy.decide(history).hyper_parameters)
    assert chosen is not None
    runs: dict[tuple[int, float, int], list[float]] = {}
    for cell in runner.full:
        runs.setdefault(_place(cell), []).append(cell.nll)
    best = min((values for values in runs.values() if len(values) == 3), key=lambda v: float(np.mean(v)))
    own = runs[_place(chosen)]
    comparison = compare_means(own, best, pool_seed_noise([own, best]), MARGIN)
    assert comparison.interval is None or comparison.interval[0] <= 0  # not significantly worse
    assert chosen.rank <= 32
    assert sum(result.cost for result in history) <= 15


def test_what_later_stages_leave_goes_back_to_the_ranks(tmp_path: Path) -> None:
    """Two other batch sizes are planned, and cost less: the table has one, mostly run before. Ranks are undecided."""
    path = Planted(scale=0.005, noise=0.004, seeds=8).write(tmp_path / "noisy.csv")
    runner = TableRunner.open(path, "planted")
    context = runner.context(margin=MARGIN, budget=16, seed=0)
    strategy = EvidenceStrategy(context.changed(batch_sizes=(8, 16, 32), largest_batch=32))
    history = play(strategy, runner)
    last = max(index for index, result in enumerate(history) if result.asked.stage is Stage.BATCH)
    assert sum(result.cost for result in history if result.asked.stage is Stage.BATCH) <= 1
    assert {result.asked.stage for result in history[last + 1 :]} == {Stage.RANK}
    assert sum(result.cost for result in history[last + 1 :]) >= 1


def _place(cell: Cell) -> tuple[int, float, int]:
    return cell.rank, cell.learning_rate, cell.batch_size
