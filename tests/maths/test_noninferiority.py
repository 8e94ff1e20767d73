"""The paired tests against scipy, scikit-learn and simulated error rates."""

from dataclasses import replace
from math import inf

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from loratune.maths.noninferiority import (
    Comparison,
    SeedNoise,
    Verdict,
    compare_f1,
    compare_means,
    compare_nll,
    compare_scores,
    family_intervals,
    macro_f1,
    pool_seed_noise,
    row_variance,
)
from loratune.metrics import Outputs, Rows, measure

NO_SEEDS = SeedNoise(variance=0.0, degrees=inf)


def test_item_part_is_the_paired_t_test() -> None:
    """With equal weights and no seed noise it must be scipy's."""
    generator = np.random.default_rng(1)
    a, b = generator.normal(1.0, 0.3, (2, 60))
    comparison = compare_nll(a[None], b[None], np.ones(60), NO_SEEDS, margin=0.1)
    theirs = stats.ttest_rel(a, b)
    interval = theirs.confidence_interval(0.95)
    assert comparison.difference == pytest.approx(a.mean() - b.mean())
    assert comparison.interval == pytest.approx((interval.low, interval.high))
    one_sided = stats.ttest_rel(a, b, alternative="less").confidence_interval(0.95)
    assert comparison.upper == pytest.approx(one_sided.high)


def test_nll_is_weighted_by_tokens() -> None:
    weights = np.array([1.0, 9.0])
    comparison = compare_nll(np.array([[2.0, 9.0]]), np.array([[1.0, 9.0]]), weights, NO_SEEDS, margin=1)
    assert comparison.difference == pytest.approx(11 / 10 - 10 / 10)


def test_seed_part_is_the_pooled_two_sample_t_test() -> None:
    a, b = [1.0, 1.2, 1.1], [0.9, 1.0, 0.8]
    comparison = compare_means(a, b, pool_seed_noise([a, b]), margin=0.0)
    theirs = stats.ttest_ind(a, b).confidence_interval(0.95)
    assert comparison.interval == pytest.approx((theirs.low, theirs.high))
    assert comparison.degrees == pytest.approx(4)


def test_pooling_skips_single_and_diverged_runs() -> None:
    noise = pool_seed_noise([[1.0], [1.0, 3.0], [2.0, inf], [5.0, 5.0, 5.0]])
    assert noise == SeedNoise(variance=2.0 / 3, degrees=3.0)
    assert not pool_seed_noise([[1.0], []]).known


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [(0.0, Verdict.ADEQUATE), (0.005, Verdict.UNDECIDED), (0.01, Verdict.INFERIOR)],
)
def test_verdicts(difference: float, verdict: Verdict) -> None:
    comparison = Comparison(difference=difference, standard_error=0.001, degrees=inf, margin=0.005)
    assert comparison.verdict is verdict


def test_unknown_seed_noise_decides_nothing() -> None:
    comparison = compare_means([1.0], [2.0], pool_seed_noise([]), margin=0.1)
    assert comparison.verdict is Verdict.UNDECIDED
    assert comparison.interval is None
    assert comparison.smallest_detectable is None
    assert not comparison.better()


def test_one_repeat_is_too_little_to_claim_something() -> None:
    """With one degree of freedom the interval of a difference would be 13 standard errors wide either way."""
    once = compare_means([1.0], [2.0], pool_seed_noise([[1.0, 1.1]]), margin=0.1)
    assert once.verdict is Verdict.UNDECIDED
    assert once.interval is None
    twice = compare_means([1.0], [2.0], pool_seed_noise([[1.0, 1.1], [2.0, 2.1]]), margin=0.1)
    assert twice.interval is not None


def normal(z: float) -> Comparison:
    return Comparison(difference=z, standard_error=1.0, degrees=inf, margin=5.0)


def test_what_is_added_to_a_difference_adds_its_doubt() -> None:
    """3 and 4 make 5; the degrees are those of the part that was estimated from few runs."""
    found = replace(normal(2.0), standard_error=3.0, degrees=4.0).moved(-0.5, 4.0)
    assert (found.difference, found.standard_error) == (1.5, 5.0)
    assert found.degrees == pytest.approx(5**4 / (3**4 / 4))


def test_one_interval_is_left_alone() -> None:
    assert family_intervals([normal(2.0)]) == [pytest.approx((0.04, 3.96), abs=1e-3)]


def test_several_intervals_leave_0_out_only_where_holm_rejects() -> None:
    """z = 2.6 and 2.3 have p = .0093 and .021: Holm's bounds for three are .0167, .025, .05."""
    found = family_intervals([normal(2.3), normal(-2.6), normal(1.99)])
    assert found[0] == pytest.approx((0.34, 4.26), abs=1e-2)
    assert found[1] == pytest.approx((-4.56, -0.64), abs=1e-2)
    assert found[2] == pytest.approx((0.03, 3.95), abs=1e-2)
    found = family_intervals([normal(2.3), normal(-2.3), normal(1.99)])  # none is below .0167
    assert [low for low, _ in found[::2]] == [0.0, 0.0]  # type: ignore[misc]
    assert found[1] == pytest.approx((-4.26, 0.0), abs=1e-2)


def test_what_has_no_interval_counts_for_nothing() -> None:
    unknown = replace(normal(0.0), seeds_measured=False)
    assert family_intervals([unknown, normal(2.0)]) == [None, pytest.approx((0.04, 3.96), abs=1e-3)]


def test_equal_settings_differ_in_one_of_twenty_reports() -> None:
    """Four settings against one reference, two seeds each: single intervals leave 0 out in a tenth of reports."""
    generator = np.random.default_rng(8)
    alone, together = [], []
    for _ in range(600):
        runs = generator.standard_normal((5, 2))
        noise = pool_seed_noise(list(runs))
        comparisons = [compare_means(list(own), list(runs[0]), noise, margin=3.0) for own in runs[1:]]
        for told, intervals in (
            (alone, [comparison.interval for comparison in comparisons]),
            (together, family_intervals(comparisons)),
        ):
            told.append(any(not i[0] <= 0 <= i[1] for i in intervals if i is not None))
    assert np.mean(together) <= 0.065 < np.mean(alone)


def test_smallest_detectable_difference_is_found_with_80_percent_power() -> None:
    comparison = Comparison(difference=0.0, standard_error=1.0, degrees=inf, margin=0.0)
    assert comparison.smallest_detectable == pytest.approx(1.6449 + 0.8416, abs=1e-3)


def test_scores_in_points_lost() -> None:
    reference, candidate = np.ones((1, 10)), np.ones((1, 10))
    candidate[0, 0] = 0
    comparison = compare_scores(candidate, reference, NO_SEEDS, margin=1.0)
    assert comparison.difference == pytest.approx(10.0)


def test_macro_f1_is_scikit_learns() -> None:
    generator = np.random.default_rng(2)
    labels, predictions = generator.integers(0, 4, (2, 200))
    ours = macro_f1(predictions, labels, np.unique(labels), np.ones((1, 200)))
    assert ours[0] == pytest.approx(f1_score(labels, predictions, average="macro"))


def test_macro_f1_is_the_same_in_results_and_comparisons() -> None:
    """Class 2 is predicted once and never true: it is not averaged in, here as in the paired test."""
    labels, predictions = np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1])
    outputs = Outputs(
        nll=np.ones(4),
        exact_match=np.zeros(4, dtype=np.bool_),
        rows=Rows(weights=np.ones(4), labels=labels),
        predictions=predictions,
    )
    expected = (2 / 3 + 1) / 2
    assert measure(outputs)[0]["f1"] == pytest.approx(expected)
    lost = compare_f1(predictions[None], labels[None], labels, NO_SEEDS, margin=1.0)
    assert lost.difference == pytest.approx(100 * (1 - expected))


def test_f1_comparison_is_paired() -> None:
    labels = np.arange(120) % 3
    wrong = (labels + 1) % 3
    same = compare_f1(labels[None], labels[None], labels, NO_SEEDS, margin=1.0)
    assert (same.difference, same.standard_error) == (0.0, 0.0)
    worse = compare_f1(
        np.where(np.arange(120) < 12, wrong, labels)[None], labels[None], labels, NO_SEEDS, 1.0
    )
    assert worse.difference == pytest.approx(10.0, abs=0.5)
    assert worse.verdict is Verdict.INFERIOR


def simulate(generator: np.random.Generator, excess: float) -> Comparison:
    """Two settings on the same 200 rows, 2 seeds each, noise of seeds and of rows within a seed."""
    rows = generator.exponential(0.5, 200)

    def runs(shift: float) -> np.ndarray:
        seeds = shift + 0.01 * generator.standard_normal((2, 1))
        return rows + seeds + 0.1 * generator.standard_normal((2, 200))

    candidate, reference = runs(excess), runs(0.0)
    noise = pool_seed_noise([candidate.mean(axis=1), reference.mean(axis=1)])
    return compare_nll(candidate, reference, np.ones(200), noise, margin=0.02)


def test_same_setting_is_called_different_in_at_most_one_of_twenty() -> None:
    generator = np.random.default_rng(3)
    found = [simulate(generator, 0.0) for _ in range(1000)]
    different = np.mean([c.interval is not None and not c.interval[0] <= 0 <= c.interval[1] for c in found])
    assert different <= 0.065  # three standard errors above 5 %


def test_a_loss_at_the_margin_is_accepted_in_at_most_one_of_twenty() -> None:
    generator = np.random.default_rng(4)
    accepted = np.mean([simulate(generator, 0.02).verdict is Verdict.ADEQUATE for _ in range(1000)])
    assert accepted <= 0.07


def test_it_has_power() -> None:
    generator = np.random.default_rng(5)
    found = [simulate(generator, 0.2).verdict for _ in range(100)]
    assert np.mean([verdict is Verdict.INFERIOR for verdict in found]) > 0.9


def test_noise_of_rows_within_a_run_is_counted_once() -> None:
    """No noise between seeds but that of their rows: the variance is the item part's alone, whatever was pooled."""
    generator = np.random.default_rng(6)
    runs = 0.5 + 0.1 * generator.standard_normal((200, 300))
    rows = row_variance(runs, np.ones(300))
    pooled = pool_seed_noise([runs.mean(axis=1)])
    assert rows == pytest.approx(0.1**2 / 300, rel=0.02)
    noise = SeedNoise(variance=rows, degrees=pooled.degrees, rows=rows)
    comparison = compare_nll(runs[:1], runs[1:2], np.ones(300), noise, margin=0.02)
    assert comparison.standard_error == pytest.approx((2 * 0.1**2 / 300) ** 0.5, rel=0.1)


def test_intervals_of_paired_runs_cover_at_their_level() -> None:
    generator = np.random.default_rng(7)
    inside = []
    for _ in range(800):
        both = []
        for _ in range(2):
            setting = 0.02 * generator.standard_normal(200)
            seeds = 0.0007 * generator.standard_normal((3, 1))
            both.append(0.5 + setting + seeds + 0.02 * generator.standard_normal((3, 200)))
        weights = np.ones(200)
        noise = pool_seed_noise([runs.mean(axis=1) for runs in both])
        noise = replace(noise, rows=sum(row_variance(runs, weights) for runs in both) / 2)
        interval = compare_nll(both[0], both[1], weights, noise, margin=0.005).interval
        inside.append(interval is not None and interval[0] <= 0 <= interval[1])
    assert 0.93 <= np.mean(inside) <= 0.975
