"""Row order, subsets, step counts, and the cuts of micro-batches against brute force."""

from itertools import product

import numpy as np
import pytest
import torch

from loratune.data.batches import TrialBatches, collate, collate_flat, cut, subset, total_steps
from loratune.data.table import TokenTable


def test_subsets_are_nested_and_rounded_up() -> None:
    quarter, half = subset(10, 0.25, 3), subset(10, 0.5, 3)
    assert len(quarter) == 3
    assert quarter.tolist() == half[:3].tolist()
    assert sorted(subset(10, 1.0, 3).tolist()) == list(range(10))
    assert quarter.base is None, "a view would keep the whole shuffle in memory"


@pytest.mark.parametrize(
    ("rows", "batch", "epochs", "steps"), [(10, 4, 1.0, 3), (10, 4, 2.0, 6), (10, 4, 0.5, 2), (3, 8, 0.1, 1)]
)
def test_steps_are_counted_as_trainer_does(rows: int, batch: int, epochs: float, steps: int) -> None:
    assert total_steps(rows, batch, epochs) == steps
    batches = TrialBatches(rows=np.arange(rows), batch_size=batch, epochs=epochs, seed=1)
    assert len(list(batches)) == len(batches) == steps


def test_every_epoch_is_a_permutation_of_its_own() -> None:
    batches = list(TrialBatches(rows=np.arange(5, 15), batch_size=4, epochs=2.0, seed=7))
    assert [len(batch) for batch in batches] == [4, 4, 2, 4, 4, 2]
    first, second = np.concatenate(batches[:3]), np.concatenate(batches[3:])
    assert sorted(first) == sorted(second) == list(range(5, 15))
    assert first.tolist() == (5 + np.random.default_rng([7, 0]).permutation(10)).tolist()
    assert second.tolist() == (5 + np.random.default_rng([7, 1]).permutation(10)).tolist()


def cost_of(pieces: list[list[int]], launch: int) -> int:
    return sum(len(piece) * max(piece) + launch for piece in pieces)


@pytest.mark.parametrize(("launch", "limit"), [(0, 100), (5, 100), (30, 60), (1000, 40)])
def test_cuts_cost_the_least(launch: int, limit: int) -> None:
    lengths = np.array([3, 9, 4, 20, 8, 21, 3, 5])
    ordered = sorted(lengths, reverse=True)
    best = None
    for marks in product([False, True], repeat=len(ordered) - 1):
        pieces: list[list[int]] = [[ordered[0]]]
        for mark, length in zip(marks, ordered[1:], strict=True):
            if mark:
                pieces.append([length])
            else:
                pieces[-1].append(length)
        if all(len(p) * max(p) <= limit or len(p) == 1 for p in pieces):
            cost = cost_of(pieces, launch)
            best = cost if best is None else min(best, cost)
    found = cut(lengths, launch_tokens=launch, max_tokens=limit)
    assert cost_of([lengths[piece].tolist() for piece in found], launch) == best
    assert sorted(np.concatenate(found)) == list(range(len(lengths)))
    assert all(len(piece) * lengths[piece].max() <= limit or len(piece) == 1 for piece in found)


def test_a_row_longer_than_the_limit_stands_alone() -> None:
    assert [piece.tolist() for piece in cut([50, 2, 2], launch_tokens=100, max_tokens=10)] == [[0], [1, 2]]


def test_collate_names_the_positions_that_predict() -> None:
    table = TokenTable.from_rows([([5, 6, 7], [False, True, True]), ([8, 9], [False, True])])
    batch = collate(table, [1, 0], device=torch.device("cpu"))
    assert batch.tokens.tolist() == [[8, 9, 0], [5, 6, 7]]
    assert batch.positions.tolist() == [0, 3, 4]
    assert batch.targets.tolist() == [9, 6, 7]
    assert batch.counts.tolist() == [1, 2]


def test_collating_takes_each_row_of_a_selection_as_it_is_stored() -> None:
    random = np.random.default_rng(0)
    stored = [
        (random.integers(1, 99, n).tolist(), random.integers(0, 2, n).astype(bool).tolist())
        for n in random.integers(1, 9, 20)
    ]
    rows = [3, 0, 3, 6]
    selection = [7, 19, 0, 2, 11, 5, 4]
    table = TokenTable.from_rows(stored).take(selection)
    pairs = [stored[selection[row]] for row in rows]
    total = sum(len(tokens) for tokens, _ in pairs)
    flat = collate_flat(table, rows, device=torch.device("cpu"), tokens=total + 3)
    padded = collate(table, rows, device=torch.device("cpu"))
    line = [token for tokens, _ in pairs for token in tokens]
    assert flat.tokens[0, : len(line)].tolist() == line
    assert flat.starts.tolist() == [0, *np.cumsum([len(tokens) for tokens, _ in pairs])]
    assert flat.tokens.numel() == total + 3
    assert not flat.tokens[0, len(line) :].any()
    for batch in (flat, padded):
        targets, counts = [], []
        for i, (tokens, flags) in enumerate(pairs):
            begin = int(batch.starts[i])
            assert batch.tokens.reshape(-1)[begin : begin + len(tokens)].tolist() == tokens
            predicted = [place for place in range(1, len(tokens)) if flags[place]]
            targets += [(begin + place - 1, tokens[place]) for place in predicted]
            counts.append(len(predicted))
        assert list(zip(batch.positions.tolist(), batch.targets.tolist(), strict=True)) == targets
        assert batch.counts.tolist() == counts
        assert batch.longest == max(len(tokens) for tokens, _ in pairs)
