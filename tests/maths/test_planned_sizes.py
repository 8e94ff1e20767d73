"""Planned sizes: of all choices the one that costs least."""

from itertools import combinations

import numpy as np

from loratune.maths.planned_sizes import planned_sizes


def filled(counts: list[int], sizes: tuple[int, ...]) -> int:
    return sum(min(size for size in sizes if size >= count) - count for count in counts)


def test_planned_sizes_cost_least_of_all_choices() -> None:
    """Against every choice there is; a size that is there already costs nothing."""
    random = np.random.default_rng(3)
    for price in (1.0, 40.0, 300.0):
        for free in ([], [96], [40, 160]):
            counts = random.integers(30, 140, size=12)
            found = planned_sizes(counts, multiple=8, price=price, free=free)
            possible = sorted({*(-(-counts // 8) * 8).tolist(), *free})
            choices = [
                filled(counts.tolist(), chosen) + price * len({*chosen} - {*free})
                for number in range(1, len(possible) + 1)
                for chosen in combinations(possible, number)
                if max(chosen) >= counts.max()
            ]
            cost = filled(counts.tolist(), tuple(found)) + price * len({*found} - {*free})
            assert cost == min(choices)
            assert found == sorted(found)


def test_equal_counts_have_one_planned_size_and_none_have_none() -> None:
    assert planned_sizes(np.full(50, 4096), multiple=128, price=1e9) == [4096]
    assert planned_sizes(np.zeros(0, np.int64), multiple=128, price=1.0) == []
