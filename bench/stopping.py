"""Whether trials of a wave may be stopped on their curve: on measured curves, who overtakes whom, and what is saved.

python bench/stopping.py --table A.csv B.csv [--at 0.25 0.5] [--ratios 1.25 2]

The rule: of one rank and seed, a run whose NLL is `ratio` times that of a higher learning rate at the same step is
stopped. (A higher rate that is behind is not: the schedule anneals it.) It is safe where no rank's best run is stopped.
"""

import argparse
import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from devices import LAUNCH_BOUND

Run = tuple[int, float, int]
"""Rank, learning rate, seed."""
Curve = Mapping[float, float]
"""NLL by the share of the run after which it was read; 1: at its end."""
NEAR = 0.07
"""A reading this close to a share stands for it."""
END = 0.99


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the rule does to the runs of one task."""

    pairs: int
    """A lower rate behind a higher one by the ratio."""
    overtaken: int
    """Of these, the ones in which the lower rate ends below the higher."""
    stopped: int
    runs: int
    best_stopped: int
    """Ranks (times seeds) whose best run is stopped."""
    ranks: int
    saved: float
    """Share of the seconds of one wave of all settings on the launch-bound device."""


def curves(table: Path, batch: int = 16) -> dict[str, dict[Run, dict[float, float]]]:
    """By task; runs that were read to their end."""
    found: dict[str, dict[Run, dict[float, float]]] = defaultdict(lambda: defaultdict(dict))
    with table.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            if int(row["batch_size"]) == batch and row["val_nll"]:
                run = int(row["rank"]), float(row["learning_rate"]), int(row["seed"])
                found[row["task"]][run][min(float(row["fraction"]), 1.0)] = float(row["val_nll"])
    return {task: {run: own for run, own in runs.items() if max(own) > END} for task, runs in found.items()}


def stop(runs: Mapping[Run, Curve], at: float, ratio: float) -> Outcome:
    """The rule applied once, after the share `at` of the runs."""
    early = {run: value for run, own in runs.items() if (value := _reading(own, at)) is not None}
    end = {run: own[max(own)] for run, own in runs.items()}
    behind = [
        (low, high)
        for low in early
        for high in early
        if low[0] == high[0] and low[2] == high[2] and low[1] < high[1] and early[low] > ratio * early[high]
    ]
    stopped = {low for low, _ in behind}
    best: dict[tuple[int, int], Run] = {}
    for run in runs:
        place = run[0], run[2]
        if place not in best or end[run] < end[best[place]]:
            best[place] = run
    width = len({run[:2] for run in runs})
    left = width * (1 - len(stopped) / len(runs))
    return Outcome(
        pairs=len(behind),
        overtaken=sum(end[low] < end[high] for low, high in behind),
        stopped=len(stopped),
        runs=len(runs),
        best_stopped=len(stopped & set(best.values())),
        ranks=len(best),
        saved=(1 - at) * (1 - _step(left) / _step(width)),
    )


def _reading(curve: Curve, at: float) -> float | None:
    share = min(curve, key=lambda own: abs(own - at))
    return curve[share] if abs(share - at) < NEAR else None


def _step(trials: float) -> float:
    """Seconds of a step, batch 16; past the last measured width as at its end."""
    rows, seconds = np.array(LAUNCH_BOUND.points).T
    slope = (seconds[-1] - seconds[-2]) / (rows[-1] - rows[-2])
    return float(np.interp(16 * trials, rows, seconds) + max(16 * trials - rows[-1], 0.0) * slope)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--table", type=Path, nargs="+", required=True)
    parser.add_argument("--at", type=float, nargs="+", default=[0.25, 0.5, 0.75])
    parser.add_argument("--ratios", type=float, nargs="+", default=[1.25, 2.0])
    options = parser.parse_args(arguments)
    tasks = {task: runs for table in options.table for task, runs in curves(table).items()}
    for ratio in options.ratios:
        for at in options.at:
            for task, runs in tasks.items():
                o = stop(runs, at, ratio)
                print(
                    f"{ratio:g} times at {at:g}  {task:<16} {o.pairs} pairs, overtook {o.overtaken}; best of a rank "
                    f"stopped {o.best_stopped} of {o.ranks}; runs stopped {o.stopped} of {o.runs}; "
                    f"seconds saved {o.saved:.1%}"
                )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
