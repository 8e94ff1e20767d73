"""Cutting adapters: exact, best of its rank, flat above a planted rank; the figures of spectra."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine_fixture import engine, tiny_family, tiny_llama, trial
from loratune.analysis.truncation import energy_rank, entropy_rank, stable_rank
from loratune.engine.selfcheck import random_table
from loratune.lora.layout import Adapter, AdapterLayout, Target, find_targets
from loratune.lora.peft_io import load_adapter, save_adapter
from loratune.lora.spectrum import decompose, threshold_ranks

TARGETS = (Target("a", 20, 12), Target("b", 12, 30), Target("c", 16, 16))
SETTING = trial(r=8, lora_alpha=12).hyper_parameters


def random_adapter(
    rank: int = 8, true_rank: int | None = None, dtype: torch.dtype = torch.float64
) -> Adapter:
    """Both factors random; B·A of `true_rank` where given."""
    setting = replace(SETTING, r=rank)
    layout = AdapterLayout.of(setting, TARGETS)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(layout.size, dtype=torch.float64, generator=generator)
    for _, b in layout.views(weights).values():
        if true_rank is not None:
            b[:, true_rank:] = 0
    return Adapter(hyper_parameters=setting, layout=layout, weights=weights.to(dtype))


def updates(adapter: Adapter) -> dict[str, torch.Tensor]:
    """What the adapter adds to each weight."""
    scaling = adapter.hyper_parameters.scaling
    return {name: scaling * b.double() @ a.double() for name, (a, b) in adapter.views().items()}


def test_the_whole_rank_is_the_same_adapter() -> None:
    whole = random_adapter()
    again = updates(decompose(whole).cut((8, 8, 8)))
    for name, update in updates(whole).items():
        assert torch.allclose(again[name], update, rtol=0, atol=1e-13 * float(update.norm()))


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_what_is_lost_is_the_tail_of_the_singular_values(rank: int) -> None:
    """Eckart and Young: no other matrix of that rank is nearer."""
    whole = random_adapter()
    cut = decompose(whole).cut((rank,) * 3)
    assert cut.layout.ranks == (rank,) * 3
    assert cut.hyper_parameters.scaling == whole.hyper_parameters.scaling
    for name, update in updates(whole).items():
        tail = torch.linalg.svdvals(update)[rank:]
        lost = torch.linalg.matrix_norm(update - updates(cut)[name])
        assert float(lost) == pytest.approx(float(tail.norm()), rel=1e-12)


def test_above_the_true_rank_nothing_is_lost() -> None:
    whole = random_adapter(true_rank=3)
    parts = decompose(whole)
    assert all(energy_rank(s, 1.0) == 3 for s in parts.spectra)
    for name, update in updates(whole).items():
        assert torch.allclose(updates(parts.cut((3,) * 3))[name], update, atol=1e-12)
        assert not torch.allclose(updates(parts.cut((2,) * 3))[name], update, atol=0.1)


def test_each_layer_to_its_own_rank_and_some_left_out() -> None:
    parts = decompose(random_adapter())
    cut = parts.cut((5, 0, 2))
    assert cut.hyper_parameters.target_modules == ("a", "c")
    assert cut.hyper_parameters.rank_pattern == (("c", 2),)
    assert (cut.layout.r, cut.layout.ranks) == (5, (5, 2))
    assert torch.allclose(updates(cut)["c"], updates(parts.cut((1, 1, 2)))["c"], atol=1e-12)
    assert parts.uniform(16) == (8, 8, 8)


def test_an_untrained_adapter_can_be_cut() -> None:
    fresh = engine(tiny_llama(), random_table(97)).initial(trial())
    parts = decompose(fresh)
    assert all(stable_rank(s) == entropy_rank(s) == energy_rank(s) == 0 for s in parts.spectra)
    assert all(bool((u == 0).all()) for u in updates(parts.cut(parts.uniform(2))).values())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_cut_adapter_is_a_peft_folder_like_any_other(family: str, tmp_path: Path) -> None:
    base = tiny_family(family, torch.float32)
    parts = decompose(engine(base, random_table(base.profile.vocabulary)).initial(trial()))
    cut = parts.cut([(4, 0, 1)[i % 3] for i in range(len(parts.factors))])
    save_adapter(cut, tmp_path / "cut", base.model)
    targets = find_targets(base.profile.targets, cut.hyper_parameters.target_modules)
    again = load_adapter(tmp_path / "cut", cut.hyper_parameters, targets, device=torch.device("cpu"))
    assert torch.equal(again.weights, cut.weights)


def test_effective_ranks() -> None:
    flat, spike = np.full(6, 2.0), np.array([3.0, 0, 0, 0])
    assert stable_rank(flat) == pytest.approx(entropy_rank(flat)) == pytest.approx(6)
    assert stable_rank(spike) == entropy_rank(spike) == energy_rank(spike) == 1
    assert energy_rank(flat) == 6
    assert energy_rank(np.array([3.0, 1.0, 0.0])) == 1
    assert energy_rank(np.array([2.0, 1.0, 1.0, 0.1]), 0.8) == 2
    assert energy_rank(flat, 0.5) == 3
    assert stable_rank(np.array([2.0, 1.0])) == 1.25
    assert entropy_rank(np.array([0.75, 0.25])) == pytest.approx(0.75**-0.75 * 0.25**-0.25)


def test_one_threshold_for_all_layers() -> None:
    spectra = [np.array([9.0, 8.0, 1.0]), np.array([7.0, 6.5, 6.0]), np.array([0.3, 0.2, 0.1])]
    costs = (10, 10, 10)
    assert threshold_ranks(spectra, costs, 50) == (2, 3, 0)
    assert threshold_ranks(spectra, costs, 59) == (2, 3, 0)
    assert threshold_ranks(spectra, costs, 60, fewest=1) == (2, 3, 1)
    assert threshold_ranks(spectra, costs, 90) == (3, 3, 3)
    assert threshold_ranks(spectra, (10, 30, 10), 49) == (2, 0, 0)
    assert threshold_ranks(spectra, costs, 30, fewest=1) == (1, 1, 1)
