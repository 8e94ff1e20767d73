"""Every strategy beside the simple policies it has to beat, on measured tables: in runs, and in seconds on two devices.

python bench/compare.py --table A.csv B.csv --margin 0.005 --out bench/results/compare.csv [--strategies evidence ...]

A budget is 5, 8 and 15 full runs; on a device so many times the seconds of one run alone. A line for each table's task
and one for all of a table. `above_four_rates` is the mean regret above that of "rank 16 with 4 rates" on the same task
at the same budget (nats).
"""

import argparse
import csv
from collections.abc import Iterator, Sequence
from math import isfinite
from pathlib import Path

import numpy as np

from baselines import ALL, names
from devices import DEVICES, Device, alone, play_on
from play import Score, play, score
from replay import drawn
from simulated import MeasuredTask, TableRunner, read_tasks

COLUMNS = (
    *(
        "commit",
        "table",
        "task",
        "by",
        "budget",
        "strategy",
        "answers",
        "nats_mean",
        "nats_max",
        "above_four_rates",
    ),
    *(
        "regret_mean",
        "regret_max",
        "inferior",
        "overshoot_mean",
        "overshoot_max",
        "diverged",
        "runs",
        "seconds",
    ),
)
OPPONENT = "rank 16 with 4 rates"


def answer(
    task: MeasuredTask, name: str, *, margin: float, budget: float, seed: int, device: Device | None
) -> tuple[Score, float]:
    """One search on the task with its repeats in another order; (its score, seconds in runs alone)."""
    runner = TableRunner(drawn(task, seed))
    context = runner.context(margin=margin, budget=budget, seed=seed)
    if device is None:
        strategy = ALL[name](context)
        history, seconds = play(strategy, runner), float("nan")
    else:
        strategy = ALL[name](device.told(context))
        unit = alone(strategy.context)
        history, seconds = play_on(strategy, runner, budget * unit)
        seconds /= unit
    setting = strategy.decide(history).hyper_parameters
    return score(runner, setting, sum(result.cost for result in history), margin), seconds


def summary(found: Sequence[tuple[Score, float]]) -> dict[str, float | int]:
    """Means and maxima; a choice that diverges has no regret and is counted."""
    scores = [each for each, _ in found]
    nats = [s.nats for s in scores if isfinite(s.nats)] or [float("nan")]
    regrets = [s.regret for s in scores if isfinite(s.regret)] or [float("nan")]
    return {
        "answers": len(scores),
        "nats_mean": _rounded(np.mean(nats)),
        "nats_max": _rounded(max(nats)),
        "regret_mean": _rounded(np.mean(regrets)),
        "regret_max": _rounded(max(regrets)),
        "inferior": _rounded(np.mean([s.inferior for s in scores])),
        "overshoot_mean": _rounded(np.mean([s.overshoot for s in scores]), 2),
        "overshoot_max": max(s.overshoot for s in scores),
        "diverged": sum(not isfinite(s.regret) for s in scores),
        "runs": _rounded(np.mean([s.cost for s in scores]), 2),
        "seconds": _rounded(np.mean([seconds for _, seconds in found]), 2),
    }


def _rounded(value: float | np.floating, digits: int = 5) -> float:
    return round(float(value), digits)


def lines(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """For each way of counting, budget, strategy: each task, then all together."""
    tables = [(path.stem, task) for path in options.table for task in read_tasks(path).values()]
    devices = {"runs": None, **DEVICES}
    for by in options.by:
        for budget in options.budgets:
            opponents: dict[str, float] = {}
            for name in sorted(names(options.strategies), key=lambda name: name != OPPONENT):
                pooled = []
                for table, task in tables:
                    wishes = {"margin": options.margin, "budget": budget, "device": devices[by]}
                    count = 1 if len({cell.seed for cell in task.cells}) == 1 else options.count
                    found = [answer(task, name, seed=seed, **wishes) for seed in range(count)]
                    pooled += found
                    if not options.pooled:
                        yield _line(options, table, task.name, by, budget, name, found, opponents)
                label = "+".join(dict.fromkeys(table for table, _ in tables))
                yield _line(options, label, "all", by, budget, name, pooled, opponents)


def _line(
    options: argparse.Namespace,
    table: str,
    task: str,
    by: str,
    budget: float,
    name: str,
    found: Sequence[tuple[Score, float]],
    opponents: dict[str, float],
) -> dict[str, object]:
    result = summary(found)
    if name == OPPONENT:
        opponents[task] = result["nats_mean"]
    above = _rounded(result["nats_mean"] - opponents[task]) if task in opponents else ""
    place = {
        "commit": options.commit,
        "table": table,
        "task": task,
        "by": by,
        "budget": budget,
        "strategy": name,
    }
    return {**place, **result, "above_four_rates": above}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--table", type=Path, nargs="+", required=True)
    parser.add_argument(
        "--strategies", nargs="*", default=[], help="all but gp, guide and the plain grid without it"
    )
    parser.add_argument("--by", nargs="+", default=["runs", *DEVICES], choices=["runs", *DEVICES])
    parser.add_argument("--budgets", type=float, nargs="+", default=[5.0, 8.0, 15.0])
    parser.add_argument("--margin", type=float, default=0.005, help="nats per supervised token")
    parser.add_argument("--count", type=int, default=4, help="orders of the repeats, where a table has any")
    parser.add_argument("--pooled", action="store_true", help="only the lines for all tasks together")
    parser.add_argument("--commit", default="", help="what was measured, written into each line")
    parser.add_argument("--out", type=Path, help="append to this CSV")
    options = parser.parse_args(arguments)
    for line in lines(options):
        if line["task"] == "all" or not options.out:
            print("  ".join(f"{name} {line[name]}" for name in COLUMNS if line[name] != ""), flush=True)
        if options.out is not None:
            new = not options.out.exists()
            with options.out.open("a", newline="") as file:
                out = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                if new:
                    out.writeheader()
                out.writerow(line)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
