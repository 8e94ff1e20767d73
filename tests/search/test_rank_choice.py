"""Which rank is taken from runs whose truth is known: the smallest that is likely enough, else the lowest."""

from collections.abc import Mapping
from math import log2

import numpy as np

from devices import LAUNCH_BOUND
from loratune.metrics import default_margin
from loratune.search.effort import fit_effort
from loratune.search.field import Field
from loratune.search.procedure import Ledger
from loratune.search.rank_choice import LIKELY, choice
from loratune.search.ranks import RankStage
from loratune.search.space import hyper_parameters, usual_rate
from loratune.values import DataFacts, ModelFacts, SearchContext, Trial, TrialResult, Wishes

MARGIN = 0.005
LEVEL = 0.5


def chosen(
    excess: Mapping[int, float],
    *,
    noise: float,
    seeds: int = 4,
    draw: int = 0,
    wide: bool = False,
    margin: float = MARGIN,
    labels: int = 0,
) -> int:
    """Of ranks that lose so many margins at their best rate, each run at three rates with so many seeds; `noise` is
    the sd of a run in margins."""
    context = SearchContext(
        data=DataFacts(rows=10_000, tokens=1_000_000, supervised_tokens=0, labels=labels),
        model=ModelFacts(largest_rank=max(excess)),
        wishes=Wishes(budget=30.0, ranks=tuple(excess), margin=margin),
    )
    if wide:
        context = LAUNCH_BOUND.told(context)
    stage = RankStage(context, fit_effort(context)[0], Ledger(budget=30.0))
    random = np.random.default_rng(draw)
    results = []
    for r, margins in excess.items():
        centre = usual_rate(context, r, stage.batch)
        for factor, worse in ((1 / 3, 10.0), (1.0, 0.0), (3.0, 10.0)):
            scatter = random.standard_normal(seeds)
            scatter -= scatter.mean() if draw == 0 else 0.0  # draw 0: the means are the truth
            for seed, own in enumerate(scatter):
                setting = hyper_parameters(context, r=r, rate=factor * centre, batch=stage.batch)
                asked = Trial(hyper_parameters=setting, seed=seed)
                nll = LEVEL + margin * (margins + worse + noise * own)
                results.append(TrialResult(asked=asked, trial=asked, nll=float(nll)))
    return choice(Field(context, stage.batch, results))


def test_a_rank_as_likely_as_not_is_not_taken_whatever_it_saves() -> None:
    assert chosen({1: 1.0, 128: 0.0}, noise=0.5) == 128


def test_of_ranks_surely_within_the_margin_the_smallest_is_taken() -> None:
    assert chosen({1: 4.0, 4: 0.3, 16: 0.1, 64: 0.0}, noise=0.05) == 4


def test_where_every_rank_was_run_none_is_taken_for_a_loss_that_shows() -> None:
    """.8 of the margin is tolerated where it can hardly be seen, and measured where width is nearly free."""
    excess = {1: 4.0, 4: 0.8, 16: 0.1, 64: 0.0}
    assert chosen(excess, noise=0.02) == 4
    assert chosen(excess, noise=0.02, wide=True) == 16


def test_where_every_rank_was_run_two_thirds_of_the_margin_are_tolerated() -> None:
    assert chosen({1: 4.0, 4: 0.6, 16: 0.1, 64: 0.0}, noise=0.02, wide=True) == 4


def test_the_luck_of_a_seed_widens_what_can_be_told_apart_and_not_what_may_be_lost() -> None:
    """Of labels one seed changes more than the metric's own margin; a margin that the user gave is kept."""
    luck = default_margin("nll", 77)
    excess = {4: 0.55 * luck, 16: 0.3 * MARGIN, 64: 0.0}
    assert 0.55 * luck > MARGIN
    for margin, rank in ((luck, 16), (1.01 * luck, 4)):
        in_margins = {r: loss / margin for r, loss in excess.items()}
        assert chosen(in_margins, noise=0.02, wide=True, margin=margin, labels=77) == rank


def test_a_rank_beaten_by_a_smaller_one_is_no_reference_for_others() -> None:
    """128 overfits: 32 is within the margin of it and far above the best."""
    assert chosen({2: 6.0, 8: 0.0, 32: 3.0, 128: 3.5}, noise=0.05) == 8


def test_where_no_smaller_rank_is_likely_the_lowest_is_taken() -> None:
    assert chosen({4: 2.5, 16: 1.2, 64: 0.0}, noise=0.3) == 64


def test_of_what_is_taken_as_many_are_adequate_as_are_asked_for() -> None:
    """60 truths drawn at random: power laws from flat to steep, two seeds that scatter by one margin."""
    random = np.random.default_rng(7)
    adequate, saved = [], []
    for draw in range(1, 61):
        steep = random.choice([0.0, 1.0, 3.0, 8.0])
        truth = {r: steep * r**-0.6 for r in (1, 4, 16, 64)}
        taken = chosen(truth, noise=1.0, seeds=2, draw=draw)
        adequate.append(truth[taken] - min(truth.values()) <= 1.0)
        saved.append(log2(64 / taken))
    assert np.mean(adequate) >= LIKELY
    assert np.mean(saved) >= 2, "the largest rank always would be adequate too"
