"""The report's tuples against numbers worked out by hand."""

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
from pydantic import TypeAdapter

from loratune.metrics import NLL, MetricInfo, Rows, find
from loratune.reporting import takeaways
from loratune.reporting.facts import Gain
from loratune.reporting.later_stages import alpha_points, batch_cells, stage_costs
from loratune.reporting.rank_curves import gaps, learning_curves, own_rate_curve, single_rate_curve
from loratune.values import Decision, PlannedStage, SearchPlan, Stage, StageSummary, TrialResult, TrialState
from report_fixture import OURS, make_facts, make_trial

T_2, T_3 = 4.302652729749464, 3.182446305284263
"""Student's t at 97.5 % with 2 and 3 degrees of freedom, from a table."""


def trial(nll: float, stage: Stage = Stage.RANK, **values: float) -> TrialResult:
    """A bare result with a given NLL."""
    return replace(make_trial(stage, **values), nll=nll, train_nll=nll - 0.05, example_nll=None)  # type: ignore[arg-type]


def with_results(*results: TrialResult, **changes: object) -> object:
    return make_facts(results=results, **changes)


SEEDED = (
    trial(0.30, r=4, learning_rate=1e-3, seed=0),
    trial(0.32, r=4, learning_rate=1e-3, seed=1),
    trial(0.29, r=4, learning_rate=3e-3, seed=0),  # lower, but one seed: not chosen
    trial(0.20, r=8, learning_rate=1e-3, seed=0),
    trial(0.24, r=8, learning_rate=1e-3, seed=1),
    trial(0.21, r=8, learning_rate=3e-4, seed=0),
    trial(0.30, r=8, learning_rate=3e-4, seed=1),
    trial(
        0.01, r=8, learning_rate=1e-2, seed=0, fraction=0.25
    ),  # low fidelity: never shown beside full trials
    trial(0.50, r=2, learning_rate=1e-3, seed=0),
    make_trial(r=16, learning_rate=1e-1, state=TrialState.DIVERGED),
)


def test_each_rank_at_its_own_learning_rate() -> None:
    curve = own_rate_curve(with_results(*SEEDED))
    assert [(p.rank, p.learning_rate, p.measured.seeds) for p in curve.points] == [
        (2, 1e-3, 1),
        (4, 1e-3, 2),
        (8, 1e-3, 2),
    ]
    assert [p.measured.value for p in curve.points] == pytest.approx([0.50, 0.31, 0.22])
    assert [p.parameters for p in curve.points] == [2 * 152_640, 4 * 152_640, 8 * 152_640]
    assert curve.fraction == 1.0


@pytest.mark.parametrize(
    ("metric", "scores", "over"),
    [
        (find("accuracy").info, {"accuracy": [1.0, 0.0, 1.0, 1.0]}, "rows"),
        (find("f1").info, {"prediction": [2.0, 0.0, 1.0, 1.0]}, ""),
        (find("correlation").info, {"correlation": [-3.0, 2.0, 4.0, 1.0]}, ""),
        (
            MetricInfo(
                name="own:wrong",
                title="wrong",
                unit="characters",
                larger_is_better=False,
                margin=0.1,
                rows_under="marks",
            ),
            {"marks": [0.0, 1.0, 1.0, 1.0]},
            "rows",
        ),
    ],
    ids=["accuracy", "F1", "correlation", "own"],
)
def test_an_interval_over_rows_is_of_the_column_whose_mean_is_the_value(
    metric: MetricInfo, scores: dict[str, list[float]], over: str
) -> None:
    """By hand: of 1, 0, 1, 1 the mean is .75, its standard error .5 / sqrt(4)."""
    arrays = {name: np.array(each) for name, each in scores.items()}
    one = replace(trial(0.3, r=4), metrics={metric.name: 0.75}, example_scores=arrays)
    two = replace(trial(0.2, r=8), metrics={metric.name: 0.75}, example_scores=arrays)
    measured = own_rate_curve(with_results(one, two), metric).points[0].measured
    assert (measured.value, measured.interval_over) == (0.75, over)
    if over:
        assert measured.interval == pytest.approx((0.75 - T_3 * 0.25, 0.75 + T_3 * 0.25))


def test_intervals_over_seeds_pool_their_variance() -> None:
    """Squares .0002 (r 4) and .0008 (r 8) with 1 degree of freedom each; r 8's other rate does not count."""
    curve = own_rate_curve(with_results(*SEEDED))
    variance = (0.0002 + 0.0008) / 2
    for point, seeds in zip(curve.points, (1, 2, 2), strict=True):
        half = T_2 * sqrt(variance / seeds)
        value = point.measured.value
        assert point.measured.interval == pytest.approx((value - half, value + half))
        assert point.measured.interval_over == "seeds"


def test_intervals_over_rows_where_nothing_is_repeated() -> None:
    """Row losses 1, 2, 3 of one token each: variance of the mean 1/3, two degrees of freedom."""
    rows = np.array([1.0, 2.0, 3.0])
    results = [replace(trial(2.0, r=rank), example_nll=rows) for rank in (4, 8)]
    curve = own_rate_curve(with_results(*results, validation_weights=np.ones(3)))
    half = T_2 * sqrt(1 / 3)
    assert curve.points[0].measured.interval == pytest.approx((2 - half, 2 + half))
    assert curve.points[0].measured.interval_over == "rows"
    without = own_rate_curve(with_results(*results, validation_weights=None))
    assert without.points[0].measured.interval is None
    assert without.points[0].measured.interval_over == ""


def test_the_single_rate_is_the_one_most_ranks_had() -> None:
    results = [trial(rank / 100, r=rank, learning_rate=1e-3) for rank in (2, 4, 8)]
    results += [trial(rank / 50, r=rank, learning_rate=3e-3) for rank in (2, 4)]
    curve = single_rate_curve(with_results(*results))
    assert [(p.rank, p.learning_rate) for p in curve.points] == [(2, 1e-3), (4, 1e-3), (8, 1e-3)]
    assert single_rate_curve(with_results(*results[:2])).points == ()
    assert single_rate_curve(with_results()).points == ()


def test_rates_that_differ_in_the_third_digit_are_one() -> None:
    results = [trial(0.2, r=rank, learning_rate=x) for rank, x in ((2, 1.001e-3), (4, 1e-3), (8, 0.999e-3))]
    assert len(single_rate_curve(with_results(*results)).points) == 3


def test_task_metric_against_rank() -> None:
    facts = make_facts()
    assert facts.shown_metric == "accuracy"
    curve = own_rate_curve(facts, facts.info(facts.shown_metric))
    found = {p.rank: p.measured.value for p in curve.points}
    for rank, rate in ((2, 3e-3), (8, 1e-3), (32, 3e-4)):
        values = [make_trial(r=rank, learning_rate=rate, seed=seed).metrics["accuracy"] for seed in (1, 2)]
        assert found[rank] == pytest.approx(np.mean(values))


def test_gap_is_a_mean_over_seeds() -> None:
    four = next(point for point in gaps(with_results(*SEEDED)) if point.rank == 4)
    assert (four.train, four.validation) == pytest.approx((0.26, 0.31))
    assert four.gap == pytest.approx(0.05)


def test_learning_curves_of_the_ranks_and_of_the_final_pair() -> None:
    curves = learning_curves(make_facts())
    assert [curve.label for curve in curves] == ["r 2", "r 8", "r 32", "recommended", "default recipe"]
    assert [curve.final for curve in curves] == [False] * 3 + [True] * 2


def test_final_trials_are_recognised_when_modules_got_names() -> None:
    decision = Decision(hyper_parameters=replace(OURS, target_modules=("q_proj", "v_proj")))
    assert "recommended" in [curve.label for curve in learning_curves(make_facts(decision=decision))]


def test_batch_cells() -> None:
    cells = {(c.batch_size, c.learning_rate): c for c in batch_cells(make_facts())}
    assert {size for size, _ in cells} == {4, 8, 16, 32}
    assert cells[4, 3e-3].nll is None
    assert cells[4, 3e-3].seeds == 1
    assert cells[8, 1e-3].nll == make_trial(batch_size=8, seed=1).nll
    expected = np.mean([make_trial(seed=seed).nll for seed in (1, 2)])
    assert cells[16, 1e-3].nll == pytest.approx(expected)  # from the rank stage, at full fidelity only
    assert cells[16, 1e-3].seeds == 2


def test_alpha_points() -> None:
    points = alpha_points(make_facts())
    assert [(p.lora_alpha, p.multiple, p.measured.seeds) for p in points] == [
        (8, 1, 1),
        (12, 1.5, 1),
        (16, 2, 2),
        (24, 3, 1),
    ]


def test_a_grid_without_such_stages_is_drawn_around_the_recommendation() -> None:
    results = [trial(0.2 + size / 1e3, learning_rate=1e-3, batch_size=size) for size in (8, 16)]
    results.append(trial(0.1, r=64, learning_rate=1e-3, batch_size=32))
    assert [cell.batch_size for cell in batch_cells(with_results(*results))] == [8, 16]


def test_stage_costs_beside_the_plan() -> None:
    rank, batch, alpha, final = stage_costs(make_facts())
    assert (rank.name, rank.trials, rank.diverged) == (str(Stage.RANK), 22, 1)
    assert rank.seconds == pytest.approx(9 * 31 / 4 + 12 * 31 + 2)
    assert rank.cost == pytest.approx(9 * 1.02 / 4 + 12 * 1.02 + 0.1)
    assert rank.trained_tokens == 9 * 45_000 + 12 * 180_000
    assert (batch.trials, batch.planned_trials, batch.planned_seconds) == (9, 9, 280)
    assert alpha.trials == 3
    assert (final.trials, final.planned_seconds) == (2, 0)


def test_gain_in_nats_by_hand() -> None:
    """Row differences 1 and 3 over one token each: mean 2, variance of the mean 1, one degree of freedom."""
    gain = Gain.from_rows(
        np.array([1.0, 1.0]),
        np.array([2.0, 4.0]),
        over="base model",
        split="test",
        metric=NLL,
        rows=Rows(weights=np.ones(2)),
    )
    t_1 = 12.706204736432095
    assert gain.value == pytest.approx(2.0)
    assert gain.interval == pytest.approx((2 - t_1, 2 + t_1))
    kept = TypeAdapter(Gain)
    assert kept.validate_python(kept.dump_python(gain, mode="json")) == gain


def test_gain_in_points_by_hand() -> None:
    ours, theirs = np.array([1.0, 1, 0, 1]), np.array([0.0, 1, 0, 1])
    gain = Gain.from_rows(
        ours, theirs, over="default recipe", split="test", metric=find("accuracy"), rows=Rows()
    )
    half = 3.182446305284263 * 25
    assert gain.value == pytest.approx(25)
    assert gain.interval == pytest.approx((25 - half, 25 + half))
    assert takeaways.gain_sentence(gain) == (
        "test accuracy 25.0 points higher than the default recipe "
        "(95 % [-54.6, 105]; the interval contains 0, so this may be chance)"
    )


def test_no_difference_has_no_sign() -> None:
    same = np.array([1.0, 0, 0, 1])
    gain = Gain.from_rows(
        same, same, over="default recipe", split="test", metric=find("exact_match"), rows=Rows()
    )
    assert str(gain.value) == "0.0"
    sentence = "test exact match as of the default recipe (95 % [0, 0])"
    assert takeaways.gain_sentence(gain) == sentence


def test_a_loss_is_called_a_loss() -> None:
    worse = Gain(over="default recipe", split="test", metric="nll", value=-0.02, interval=(-0.03, -0.01))
    assert takeaways.gain_sentence(worse) == (
        "test NLL 0.0200 nats higher than the default recipe (95 % [0.01, 0.03])"
    )


def test_headline_gains_are_of_the_test_split_and_recipe_first() -> None:
    shown = takeaways.headline_gains(make_facts())
    assert [(gain.over, gain.metric) for gain in shown] == [
        ("default recipe", "nll"),
        ("default recipe", "accuracy"),
        ("base model", "nll"),
    ]
    validation = (Gain(over="base model", split="validation", metric="nll", value=1.0),)
    assert takeaways.headline_gains(make_facts(gains=validation)) == list(validation)


def test_sentences_carry_the_figures_numbers() -> None:
    facts = with_results(*SEEDED, *[trial(0.4, r=rank, learning_rate=1e-3) for rank in (16,)])
    own, single = own_rate_curve(facts), single_rate_curve(facts)
    assert takeaways.rank_sentence(own, single, facts) == (
        "At their own learning rates, ranks 2 to 16 lie within 0.2800 nats of each other; at the single "
        "learning rate 1e-3 the same comparison spans 0.2800 nats. Recommended: rank 8 with 1.22M parameters."
    )
    cells = batch_cells(make_facts())
    best = min((cell for cell in cells if cell.nll), key=lambda cell: cell.nll or 9)
    assert f"{best.nll:.4f} at learning rate 1e-3 and batch size {best.batch_size}, inside" in (
        takeaways.batch_sentence(cells)
    )
    assert takeaways.alpha_sentence(alpha_points(make_facts()), make_facts(margin=1.0)).startswith("Flat")
    assert "Largest gap: 0.0500 nats" in takeaways.gap_sentence(gaps(facts))
    assert takeaways.cost_sentence(make_facts()) == (
        "36 trials, 4.91M tokens, 15.6 min (1.06 x the predicted 14.8 min); "
        "one after another they would take about 40.2 min."
    )


ON_CONDITION = PlannedStage(
    name="alpha", question="?", trials=0, cost=0.0, note="only if validation NLL rises"
)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {
                "plan": SearchPlan(
                    stages=(), dropped=("Alpha stays at 2r, to fit the budget.", "One seed less.")
                )
            },
            "Not run; the reason is given under what the budget left out.",
        ),
        (
            {"plan": SearchPlan(stages=(PlannedStage(name="alpha", question="?", trials=3, cost=3.0),))},
            "Planned, but the search ended before it.",
        ),
        (
            {"plan": SearchPlan(stages=(ON_CONDITION,))},
            "Not needed: it is asked only if validation NLL rises.",
        ),
        (
            {"plan": SearchPlan(stages=(ON_CONDITION,)), "cut_by_clock": True},
            "Planned, but the search ended before it.",
        ),
        (
            {
                "decision": Decision(
                    hyper_parameters=OURS,
                    stages=(StageSummary(name="alpha", question="?", answer="the clock cut it"),),
                )
            },
            "Not run: the clock cut it.",
        ),
        ({"plan": SearchPlan(stages=()), "strategy": "tpe"}, "Not part of this plan of the strategy “tpe”."),
    ],
)
def test_why_a_stage_is_missing(changes: dict[str, object], expected: str) -> None:
    facts = make_facts(results=SEEDED, **changes)
    assert takeaways.missing(facts, Stage.ALPHA) == expected


def test_a_single_rank_that_was_measured_is_named() -> None:
    facts = make_facts(
        results=[make_trial(r=16), make_trial(r=16, seed=1), make_trial(r=4, state=TrialState.DIVERGED)]
    )
    assert takeaways.missing(facts, Stage.RANK) == "Too little to draw: only rank 16 was measured."


def test_a_stage_that_diverged_throughout_says_so() -> None:
    facts = make_facts(results=[make_trial(Stage.ALPHA, state=TrialState.DIVERGED, lora_alpha=64)])
    assert (
        takeaways.missing(facts, Stage.ALPHA) == "Too little to draw: 0 of 1 trials of this stage finished."
    )


def test_a_beta_that_the_budget_left_out() -> None:
    stages = (PlannedStage(name="beta", question="?", trials=0, cost=0.0),)
    plan = SearchPlan(stages=stages, dropped=("For the budget of 12 full runs: beta is not searched.",))
    facts = make_facts(results=SEEDED, plan=plan)
    assert (
        takeaways.missing(facts, Stage.BETA) == "Not run; the reason is given under what the budget left out."
    )
