"""Masks from a hash: rate, independence, and the same in any company."""

import numpy as np
import pytest
import torch

from loratune.lora.dropout import keep_mask, row_keys


def mask_of(keys: np.ndarray, module: str, tokens: int, p: float) -> torch.Tensor:
    """[rows, tokens, 64] of rows with `keys`, each of `tokens` tokens."""
    places = torch.arange(tokens, dtype=torch.int32).repeat(len(keys))
    spread = torch.from_numpy(keys).repeat_interleave(tokens)
    return keep_mask(spread, places, module, features=64, p=p).view(len(keys), tokens, 64)


def mask(rows: list[int], *, seed: int = 1, step: int = 0, tokens: int = 16, p: float = 0.1) -> torch.Tensor:
    return mask_of(row_keys(seed, step, rows), "layer.q_proj", tokens, p)


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_rate(p: float) -> None:
    kept = mask(list(range(256)), p=p).float()
    n = kept.numel()
    assert abs(kept.mean().item() - (1 - p)) < 5 * (p * (1 - p) / n) ** 0.5
    for axis in range(3):
        others = [a for a in range(3) if a != axis]
        means = kept.mean(others)
        bound = 6 * (p * (1 - p) / (n / len(means))) ** 0.5
        assert (means - (1 - p)).abs().max() < bound, f"uneven along axis {axis}"


def test_neighbouring_elements_are_uncorrelated() -> None:
    dropped = (~mask(list(range(256)), p=0.5)).double() - 0.5
    for shift in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1)):
        rolled = torch.roll(dropped, shift, (0, 1, 2))
        assert abs((dropped * rolled).mean().item()) < 5 * 0.25 / dropped.numel() ** 0.5


def test_the_same_in_any_company_order_and_padding() -> None:
    whole = mask([0, 1, 2, 3])
    assert torch.equal(mask([2, 0]), whole[[2, 0]])
    assert torch.equal(mask([3], tokens=40)[:, :16], whole[[3]])


def test_differs_by_seed_step_and_module() -> None:
    keys = row_keys(1, 0, [0])
    masks = [mask([0]), mask([0], seed=2), mask([0], step=1), mask([1])]
    masks.append(mask_of(keys, "layer.k_proj", 16, 0.1))
    for i, first in enumerate(masks):
        for second in masks[i + 1 :]:
            assert 0.12 < (first != second).float().mean() < 0.24  # 2 p (1 - p) = 0.18


def test_known_values() -> None:
    """Masks must not change between versions or devices: a resumed study would not be repeated."""
    packed = mask([0, 5], tokens=2, p=0.5).flatten().int()
    assert [int(value) for value in packed[:16]] == KNOWN


KNOWN = [0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 0, 1, 0, 1, 1, 0]
