"""The small version of `bench/truth.py`: claims and choices on generated tables whose truth is known."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from loratune.runners.simulated import TableRunner
from loratune.search.make import make_strategy
from play import play


@pytest.fixture(scope="module")
def truth() -> ModuleType:
    path = Path(__file__).parents[2] / "bench" / "truth.py"
    spec = spec_from_file_location("truth", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["truth"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["all equal", "all equal, 2 seeds"])
def test_equal_settings_are_not_told_apart(truth: ModuleType, name: str) -> None:
    tally = truth.run(truth.SCENARIOS[name], 15.0, 6)
    assert len(tally.covered) >= 4
    assert np.mean(tally.covered) >= 0.8  # 93 to 97 % over the thousands of claims of the bench script
    assert sum(tally.false_inferior) + sum(tally.false_differs) == 0
    assert not any(tally.inferior)


@pytest.mark.parametrize("name", ["power law, noisy", "all equal, noisy"])
def test_the_report_is_about_the_rank_that_is_recommended(truth: ModuleType, name: str) -> None:
    """Learning rates that are compared after the choice must not change what is said of it."""
    for seed in range(3):
        runner = TableRunner(truth.SCENARIOS[name].table(np.random.default_rng(seed)))
        strategy = make_strategy("evidence", runner.context(margin=truth.MARGIN, budget=12, seed=seed))
        decision = strategy.decide(play(strategy, runner))
        pairs = [truth.RANKS_CLAIMED.match(claim.claim) for claim in decision.evidence]
        found = [(int(pair[1]), int(pair[2])) for pair in pairs if pair is not None]
        assert found
        assert all(small < large for small, large in found)
        taken = [claim.claim for claim in decision.evidence if "it is taken because" in claim.claim]
        assert all(claim.startswith(f"Rank {decision.hyper_parameters.r} ") for claim in taken)
        shown = [claim.claim for claim in decision.evidence if claim.holds and "non-inferior" in claim.claim]
        largest = decision.hyper_parameters.r == max(truth.RANKS)
        mine = any(claim.startswith(f"Rank {decision.hyper_parameters.r} ") for claim in shown)
        assert largest or bool(taken) != mine


def test_a_quiet_power_law_is_answered_well(truth: ModuleType) -> None:
    tally = truth.run(truth.SCENARIOS["power law, quiet"], 15.0, 4)
    assert sum(tally.false_adequate) + sum(tally.false_inferior) == 0
    assert not any(tally.inferior)
    assert np.mean(tally.overshoot) <= 1
    assert max(tally.cost) <= 15


def test_a_search_stops_where_nothing_is_left_to_learn(truth: ModuleType) -> None:
    """Every rank is equal and the noise small: of a budget of 60 runs some is left (44 to 55 are spent)."""
    tally = truth.run(truth.SCENARIOS["all equal"], 60.0, 2)
    assert max(tally.cost) < 57
