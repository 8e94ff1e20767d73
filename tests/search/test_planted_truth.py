"""Known truths on the real engine: a planted rank is found, memory grows with rank, alpha trades for learning rate.

The functions are those of `bench/planted.py`, whose full results are in `bench/results/`; here they run small.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from distil import planted_teacher
from loratune.lora.layout import find_targets
from loratune.values import Evidence

BENCH = Path(__file__).parents[2] / "bench" / "planted.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_planted", BENCH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


planted = load()


def rank_claim(evidence: tuple[Evidence, ...], r: int) -> Evidence:
    return next(each for each in evidence if each.claim.startswith(f"Rank {r} is non-inferior"))


def test_the_teacher_differs_by_exactly_the_planted_rank() -> None:
    base = planted.tiny(dtype=torch.float64)
    targets = find_targets(base.profile.targets, ("all-linear",))
    teacher = planted_teacher(base.model, targets, r=3, strength=0.3, seed=1)
    for name, _, _ in targets:
        before = base.model.get_submodule(name).weight
        update = teacher.get_submodule(name).weight - before
        values = torch.linalg.svdvals(update)
        assert (values > 1e-9 * values[0]).sum() == 3
        assert float(update.norm() / before.norm()) == pytest.approx(0.3)
        assert float(values[2] / values[0]) > 0.2, "no rank below comes close"
    others = [name for name, _ in base.model.named_parameters() if "proj" not in name]
    assert all(torch.equal(base.model.get_parameter(n), teacher.get_parameter(n)) for n in others)


def test_the_search_finds_the_planted_rank() -> None:
    """The default strategy, its paired tests and a margin of 5 % of the base model's divergence."""
    before, decision, history = planted.planted_search(2, 0, ranks=(1, 2, 8), rates=(3e-2,))
    assert decision.hyper_parameters.r == 2
    assert rank_claim(decision.evidence, 2).holds
    assert not rank_claim(decision.evidence, 1).holds
    best = min(result.nll for result in history if result.trial.hyper_parameters.r == 2)
    assert best < 0.05 * before, "the teacher is matched, not merely approached"


def test_memory_of_random_labels_grows_with_rank() -> None:
    """More bits than fit: twice the rank remembers much more, and always below 2 bits for each parameter."""
    found = planted.memorised(512, ranks=(1, 2, 4), rates=(3e-2,), epochs=50.0)
    bits = np.array([found[r][0] for r in (1, 2, 4)])
    parameters = np.array([found[r][1] for r in (1, 2, 4)])
    assert bits[0] < 0.5 * 4 * 512, "the labels do not all fit"
    assert (np.diff(bits) > 0.2 * bits[:-1]).all()
    assert (bits < 2 * parameters).all()
    assert bits[0] > 0.2 * parameters[0]


def test_what_fits_is_remembered_whole() -> None:
    (bits, parameters) = planted.memorised(32, ranks=(8,), rates=(1e-2,), epochs=200.0)[8]
    assert 2 * parameters > 4 * 32, "the law says that it fits"
    assert bits > 0.98 * 4 * 32


@pytest.mark.parametrize(("p", "q"), [(1, 2), (2, 1), (3, 1.7), (0.3, 8)])
def test_alpha_and_learning_rates_trade_off_step_by_step(p: float, q: float) -> None:
    """alpha/(pq), p times A's start, rates p and q for A and B: the same losses to rounding."""
    assert planted.invariance(p, q, steps=12) < 1e-9


def test_the_trade_off_fails_where_only_alpha_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = planted.TwoRates
    monkeypatch.setattr(planted, "TwoRates", lambda weights, factor: plain(weights, torch.ones_like(factor)))
    assert planted.invariance(1, 2, steps=12) > 1e-3


def test_constant_alpha_hides_the_rank_and_alpha_2r_does_not() -> None:
    """The first 20 steps of ranks 4, 16 and 64: why no rank may be judged at low fidelity."""
    found = planted.rank_blindness(1e-5)
    assert found["constant_alpha"] < 1e-3
    assert found["constant_alpha, learnt"] > 1e-3
    assert found["alpha_2r"] > 5e-3
