"""Flat micro-batches: no row sees another, and models that cannot have them are found out."""

import numpy as np
import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from engine_fixture import REFERENCE, tiny_llama
from families import FAMILIES, random_model
from loratune.data.batches import collate, collate_flat, fill
from loratune.engine.body import FlatRows
from loratune.engine.machinery import Paths
from loratune.engine.selfcheck import random_table, selfcheck
from loratune.errors import ModelError
from loratune.kernels.launch import KernelPath
from loratune.model import rows as rows_module
from loratune.model.architecture import longest_row
from loratune.model.quiet import quiet
from loratune.model.rows import ByLength, FlatPath, bounds_of, flat, flat_path
from loratune.objectives.causal import Causal

CPU = torch.device("cpu")
FLAT = Paths(low_rank=KernelPath(False, "a CPU"), rows=FlatPath(True, "tested"), compiled=False)
EXTRA = {
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_taken_where_it_gives_the_padded_states(family: str) -> None:
    """Rows longer than Gemma 3's window included; whoever is taken agrees far below the check's tolerance."""
    model = random_model(family).eval().requires_grad_(False)
    path = flat_path(model, longest=40)
    assert path.flat, path
    table = random_table(260, rows=9, longest=40)
    decoder = model.get_decoder()
    padded, line = (
        collate(table, range(9), device=CPU),
        collate_flat(table, range(9), device=CPU, tokens=int(table.lengths.sum()) + 3),
    )
    with torch.no_grad():
        expected = decoder(input_ids=padded.tokens, use_cache=False).last_hidden_state.flatten(0, 1)
        ends = np.unique([*line.starts, line.tokens.numel()])
        with flat(model, bounds_of(ends, CPU)):
            places = torch.from_numpy(line.places)[None]
            found = decoder(input_ids=line.tokens, position_ids=places, use_cache=False).last_hidden_state[0]
    assert torch.equal(padded.targets, line.targets)
    torch.testing.assert_close(found[line.positions], expected[padded.positions], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", EXTRA)
def test_architectures_whose_rows_would_see_each_other_are_refused(family: str) -> None:
    config = CONFIG_MAPPING[family](vocab_size=260, **EXTRA[family])
    with quiet():
        model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    assert not flat_path(model, longest=40).flat


def test_a_window_that_is_ignored_is_found_out_only_where_rows_reach_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = random_model("gemma3_text").eval().requires_grad_(False)
    original = rows_module._by_length
    monkeypatch.setattr(
        rows_module, "_by_length", lambda q, k, v, scale, window, *more: original(q, k, v, scale, None, *more)
    )
    monkeypatch.setattr(rows_module, "_CHECKED_LENGTHS", (5, 3, 7))
    assert flat_path(model, longest=8).flat
    assert not flat_path(model, longest=40).flat


@pytest.mark.parametrize("longest", [8, 40])
@pytest.mark.parametrize("family", ["phimoe", "doge"])
def test_a_window_that_stands_in_the_mask_alone_is_refused(family: str, longest: int) -> None:
    """Whatever the precision: in half of it a few tokens too many among a thousand do not show in the states."""
    config = CONFIG_MAPPING[family](
        vocab_size=260, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=20, num_local_experts=2, num_experts_per_tok=1,
    )  # fmt: skip
    with quiet():
        model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    path = flat_path(model, longest=longest)
    assert not path.flat
    assert ("a window of 20 tokens" in path.reason) == (family == "phimoe")  # doge adds to its mask before


@pytest.mark.parametrize(
    ("family", "changes", "expected"),
    [
        ("llama", {"max_position_embeddings": 4096}, 4096),
        ("gpt2", {"n_positions": 1024}, 1024),
        ("phi3", {"max_position_embeddings": 131072, "original_max_position_embeddings": 4096}, 4096),
        ("mpt", {}, None),
    ],
)
def test_rows_are_no_longer_than_their_angles_are_the_same_in(
    family: str, changes: dict[str, int], expected: int | None
) -> None:
    """With `longrope` one long row changes the angles of all others in a forward pass."""
    config = CONFIG_MAPPING[family](**changes)
    if family == "phi3":
        config.rope_parameters = {
            "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 48, "long_factor": [2.0] * 48,
            "original_max_position_embeddings": 4096,
        }  # fmt: skip
    assert longest_row(config) == expected


def test_a_decoder_without_states_is_left_to_the_head() -> None:
    config = CONFIG_MAPPING["llama4_text"](
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size_mlp=48, num_local_experts=2, num_experts_per_tok=1, head_dim=8,
    )  # fmt: skip
    with quiet():
        model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    assert not flat_path(model, longest=8).flat
    with pytest.raises(ModelError, match="must have a decoder below its head"):
        Causal(model)


def test_kernels_are_not_given_values_of_another_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would read beyond their end (multi-head latent attention has such values)."""
    monkeypatch.setattr(rows_module, "_bounds", torch.zeros(2, 4, dtype=torch.int32))
    query, value = torch.zeros(1, 2, 4, 24), torch.zeros(1, 2, 4, 16)
    with pytest.raises(ValueError, match="values of 16 features beside queries of 24"):
        rows_module._attend(torch.nn.Identity(), query, query, value, None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("paths", [FLAT, REFERENCE], ids=["flat", "padded"])
def test_exactness_on_both_paths(dtype: torch.dtype, paths: Paths) -> None:
    check = selfcheck(tiny_llama(dtype), random_table(97), steps=5, paths=paths)
    assert check.holds, check


def test_no_piece_is_larger_than_the_limit_and_sizes_are_even() -> None:
    random = np.random.default_rng(0)
    for limit in (50, 128, 1000):
        lengths = random.integers(1, 60, 200)
        pieces = fill(lengths, max_tokens=limit)
        assert np.concatenate(pieces).tolist() == list(range(200))
        sizes = np.array([lengths[piece].sum() for piece in pieces])
        assert all(size <= limit or len(piece) == 1 for size, piece in zip(sizes, pieces, strict=True))
        if limit > 300:
            assert len(pieces) == -(-int(lengths.sum()) // limit)
            assert sizes.max() - sizes.min() <= 2 * 60


def test_what_fills_a_line_up_is_cut_into_rows_no_longer_than_the_longest() -> None:
    """A line of 16,384 tokens may lack 1,000: attention would take longer for them as one row than for the rest."""
    table = random_table(97, rows=60, longest=24)
    for rows in (60, 55, 50):
        batch = collate_flat(table, range(rows), device=CPU, tokens=1024)
        line = FlatRows.of(batch)
        assert line is not None
        assert isinstance(line.bounds, ByLength)
        lengths = [length for count, length in line.bounds.groups for _ in range(count)]
        assert sum(lengths) == 1024
        assert max(lengths) == batch.longest
        assert int(line.places.max()) == batch.longest - 1  # models have places for no more
