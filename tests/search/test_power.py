"""How likely a budget decides: the figure of the plan against simulated tests, and what the plan says of it."""

from math import inf

import numpy as np
import pytest

from loratune.maths.noninferiority import Verdict, compare_means, pool_seed_noise
from loratune.metrics import default_margin, usual_seed_sd
from loratune.search.evidence import EvidenceStrategy
from loratune.search.power import power
from loratune.values import DataFacts, ModelFacts, SearchContext, Wishes


@pytest.mark.parametrize(("margin", "seeds"), [(0.005, 2), (0.005, 4), (0.002, 4), (0.002, 8)])
def test_the_power_is_that_of_the_paired_test_on_equal_ranks(margin: float, seeds: int) -> None:
    """2000 tests of two ranks that are alike, with the noise of their own runs only."""
    random = np.random.default_rng(0)
    shown = 0
    for _ in range(2000):
        small, large = 0.5 + 0.002 * random.standard_normal((2, seeds))
        found = compare_means(small, large, pool_seed_noise([small, large]), margin)
        shown += found.verdict is Verdict.ADEQUATE
    assert power(margin, 0.002, seeds) == pytest.approx(shown / 2000, abs=0.08)


def test_one_seed_decides_nothing_and_many_decide() -> None:
    assert power(0.005, 0.002, 1) == 0
    assert power(0.005, 0.002, 50) > 0.999
    assert power(0.005, inf, 50) < 0.06


def test_the_margin_is_never_smaller_than_what_one_seed_changes() -> None:
    for labels in (0, 77):
        assert default_margin("nll", labels) >= usual_seed_sd(labels)
    assert default_margin("nll", 0) == default_margin("perplexity", 0) == 0.005
    assert default_margin("exact_match", 77) == 1.0


@pytest.mark.parametrize(
    ("budget", "words"), [(40.0, "test seeds of two equal ranks"), (4.0, "stays undecided")]
)
def test_the_plan_tells_how_likely_it_decides(budget: float, words: str) -> None:
    context = SearchContext(
        data=DataFacts(rows=2_000, tokens=60_000, supervised_tokens=10_000),
        model=ModelFacts(hidden_size=576),
        wishes=Wishes(budget=budget),
    )
    note = EvidenceStrategy(context).plan().stages[0].note
    assert "one seed usually changes 0.0022 nats, the margin is not smaller" in note
    assert words in note
