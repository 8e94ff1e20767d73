"""Sizes chosen from all counts that are to come; apart from `sizes`, which options ask before numpy is loaded."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def planned_sizes(
    counts: npt.NDArray[np.int64], *, multiple: int, price: float, free: Sequence[int] = ()
) -> list[int]:
    """The sizes, ascending, to which all `counts` are filled up at the least cost: what is filled up, and each size.

    A size is a multiple of `multiple` and costs `price`, in units of the counts, or nothing if it is one of `free`.
    """
    rounded = -(-counts // multiple) * multiple
    sizes = np.union1d(rounded, np.array(free, np.int64))
    prices = np.where(np.isin(sizes, np.array(free, np.int64)), 0.0, price)
    # number of counts up to each size; the cost of all up to there, and the size before the last
    within = np.concatenate([[0], np.searchsorted(np.sort(rounded), sizes, side="right")])
    costs = np.zeros(len(sizes) + 1)
    before = np.zeros(len(sizes) + 1, np.int64)
    for last in range(1, len(sizes) + 1):
        # what each choice costs but for the sum of the counts, which is the same for all
        choices = costs[:last] + sizes[last - 1] * (within[last] - within[:last])
        before[last] = int(np.argmin(choices))
        costs[last] = choices[before[last]] + prices[last - 1]
    found: list[int] = []
    least = int(np.searchsorted(sizes, rounded.max(initial=0))) + 1  # holds the largest count
    last = least + int(np.argmin(costs[least:])) if len(rounded) else 0
    while last:
        found.append(int(sizes[last - 1]))
        last = int(before[last])
    return found[::-1]
