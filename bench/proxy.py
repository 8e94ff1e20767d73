"""What a setting found on a smaller model of the family loses on the larger one, on a table of measured runs.

python bench/proxy.py --table grid.csv --out bench/results/proxy.csv [--margin 0.005]

On the smaller model the smallest rank within the margin of its best is chosen, at its best learning rate. On the larger
one that rank (or the nearest that its table has) is measured at the rates of a policy: `rate carried` trains nothing
more; `two rates` are the carried one and the next below; `three rates` the carried one and its neighbours; `widened`
goes on by one where the best of three is at an edge. Beside them stand rank 16 (or the largest) with the rates of the
table from 1e-4 to 1e-3, and the margin's own choice on the larger model. A line for each pair and policy, then one for
each policy over the pairs of Qwen, the others, and all. Losses are nats above the larger model's best cell; `runs` are
of the larger model.
"""

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import combinations
from math import log
from pathlib import Path

import numpy as np

from record import append

FAMILIES: dict[str, tuple[str, ...]] = {
    "Qwen3": ("Qwen3-8B-Base", "Qwen3-30B-A3B", "Qwen3-32B", "Qwen3-235B-A22B-Instruct-2507"),
    "Qwen3-VL": ("Qwen3-VL-30B-A3B-Instruct", "Qwen3-VL-235B-A22B-Instruct"),
    "Qwen3.5": ("Qwen3.5-4B", "Qwen3.5-9B", "Qwen3.5-27B", "Qwen3.5-35B-A3B", "Qwen3.5-397B-A17B"),
    "Llama 3": ("Llama-3.2-1B", "Llama-3.1-8B", "Llama-3.3-70B-Instruct"),
    "Nemotron 3": (
        "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
        "NVIDIA-Nemotron-3-Super-120B-A12B-BF16",
        "NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16",
    ),
    "gpt-oss": ("gpt-oss-20b", "gpt-oss-120b"),
}
"""Models of a release, the smallest first; pairs of unequal size."""
Curves = Mapping[int, Mapping[float, float]]
"""NLL by rank and learning rate."""
_USUAL = (1e-4, 1e-3)


def read_curves(table: Path) -> Mapping[str, Curves]:
    """By model, its owner left out; a cell without a number has diverged and is no cell here."""
    found: dict[str, dict[int, dict[float, float]]] = defaultdict(lambda: defaultdict(dict))
    with table.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            if row["val_nll"]:
                model = row["task"].rpartition("/")[2]
                found[model][int(row["rank"])][float(row["learning_rate"])] = float(row["val_nll"])
    return dict(found)


def best_of(curve: Mapping[float, float]) -> tuple[float, float]:
    """(NLL, learning rate) of the best rate."""
    return min((nll, rate) for rate, nll in curve.items())


def chosen_rank(curves: Curves, margin: float) -> int:
    """The smallest within the margin of the best, each at its own rate."""
    best = min(best_of(curve)[0] for curve in curves.values())
    return min(rank for rank, curve in curves.items() if best_of(curve)[0] <= best + margin)


def nearest(values: Iterable[float], value: float) -> float:
    """In log space."""
    return min(values, key=lambda each: abs(log(each / value)))


def policies(curve: Mapping[float, float], carried: float) -> dict[str, tuple[float, int]]:
    """(NLL, runs) at one rank of the larger model, by policy; the final run of the answer is not counted."""
    rates = sorted(curve)
    place = rates.index(nearest(rates, carried))

    def best(low: int, high: int) -> tuple[float, int]:
        tried = rates[max(0, low) : high + 1]
        return min(curve[rate] for rate in tried), len(tried)

    three = rates[max(0, place - 1) : place + 2]
    winner = rates.index(min(three, key=curve.__getitem__))
    low, high = min(place - 1, winner - 1), max(place + 1, winner + 1)
    return {
        "rate carried": (curve[rates[place]], 0),
        "two rates": best(place - 1, place),
        "three rates": best(place - 1, place + 1),
        "widened": best(low, high),
    }


def play(small: Curves, large: Curves, margin: float) -> dict[str, tuple[float, int, int]]:
    """(nats above the larger model's best cell, runs of it, rank) by policy."""
    truth = min(best_of(curve)[0] for curve in large.values())
    rank = chosen_rank(small, margin)
    there = int(nearest(large, rank))
    carried = best_of(small[rank])[1]
    found = {
        name: (nll - truth, runs, there) for name, (nll, runs) in policies(large[there], carried).items()
    }
    usual = int(nearest(large, 16))
    rates = {rate: nll for rate, nll in large[usual].items() if _USUAL[0] <= rate <= _USUAL[1]}
    found["rank 16, its rates"] = min(rates.values()) - truth, len(rates), usual
    own = chosen_rank(large, margin)
    found["searched there"] = best_of(large[own])[0] - truth, sum(map(len, large.values())), own
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--margin", type=float, default=0.005)
    given = parser.parse_args()
    curves = read_curves(given.table)
    sums: dict[tuple[str, str], list[tuple[float, int]]] = defaultdict(list)
    for family, names in FAMILIES.items():
        group = "Qwen" if family.startswith("Qwen") else "others"
        for small, large in combinations(names, 2):
            for policy, (nats, runs, rank) in play(curves[small], curves[large], given.margin).items():
                line = {"family": family, "proxy": small, "model": large, "policy": policy, "pairs": 1}
                append(
                    given.out,
                    {
                        **line,
                        "rank": rank,
                        "runs": runs,
                        "nats_mean": f"{nats:.4f}",
                        "nats_max": f"{nats:.4f}",
                    },
                )
                for each in (group, "all"):
                    sums[each, policy].append((nats, runs))
    for (group, policy), values in sums.items():
        nats, runs = np.array(values).T
        line = {"family": group, "proxy": "", "model": "", "policy": policy, "pairs": len(values), "rank": ""}
        line |= {
            "runs": f"{runs.mean():.1f}",
            "nats_mean": f"{nats.mean():.4f}",
            "nats_max": f"{nats.max():.4f}",
        }
        append(given.out, line)
        print(
            f"{group:8} {policy:20} {nats.mean():.4f} mean, {nats.max():.4f} at most, {runs.mean():.1f} runs"
        )


if __name__ == "__main__":
    main()
