"""The small version of `bench/truth.py`: claims and choices on generated tables whose truth is known."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture(scope="module")
def truth() -> ModuleType:
    path = Path(__file__).parents[1] / "bench" / "truth.py"
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
    assert len(tally.covered) >= 6
    assert np.mean(tally.covered) >= 0.8  # 93 to 97 % over the thousands of claims of the bench script
    assert sum(tally.false_inferior) == 0
    assert not any(tally.inferior)


def test_a_quiet_power_law_is_answered_well(truth: ModuleType) -> None:
    tally = truth.run(truth.SCENARIOS["power law, quiet"], 15.0, 4)
    assert sum(tally.false_adequate) + sum(tally.false_inferior) == 0
    assert not any(tally.inferior)
    assert np.mean(tally.overshoot) <= 1
    assert max(tally.cost) <= 15


def test_a_search_stops_where_nothing_is_left_to_learn(truth: ModuleType) -> None:
    """Every rank is equal and the noise small: a budget of 60 runs is not spent on exploring."""
    tally = truth.run(truth.SCENARIOS["all equal"], 60.0, 1)
    assert tally.cost[0] < 50
