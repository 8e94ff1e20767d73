"""Replays a strategy on a table of measured runs and scores its answer (`docs/design.md`, "Simulated runs").

python bench/replay.py --table TABLE.csv --strategy evidence [--task T] [--json]
python bench/replay.py --benchmark OUT.csv [--table TABLE.csv --table-margin ...]
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from loratune.errors import DataError, LoratuneError
from loratune.run.play import Score, always, play_and_score
from loratune.run.simulated import TableRunner, read_tasks
from loratune.search.make import STRATEGIES, make_strategy


def table_line(name: str, s: Score | None) -> str:
    if s is None:
        return f"  {name:<22} (the table has no such rank)"
    rank, rate, batch, alpha = s.chosen
    return (
        f"  {name:<22} rank {rank:>3}  lr {rate:<7g} batch {batch:<4} alpha {alpha:<5g} "
        f"{'INFERIOR' if s.inferior else 'adequate'}  overshoot {s.overshoot:.1f}  regret {s.regret:7.3%}  "
        f"cost {s.cost:5.2f} runs ({s.cost_share:.1%})"
    )


def summary_line(name: str, scores: Sequence[Score | None]) -> str:
    known = [s for s in scores if s is not None]
    if not known:
        return f"  {name:<22} (no task has such a rank)"
    regrets = [s.regret for s in known]
    return (
        f"  {name:<22} tasks {len(known):>3}  inferior {np.mean([s.inferior for s in known]):6.1%}  "
        f"overshoot {np.mean([s.overshoot for s in known]):.2f}  "
        f"regret mean {np.mean(regrets):.3%} max {max(regrets):.3%}  "
        f"cost {np.mean([s.cost for s in known]):.2f} runs ({np.mean([s.cost_share for s in known]):.1%})"
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--table", type=Path, required=True, help="CSV of measured runs")
    parser.add_argument("--strategy", required=True, help=f"one of {', '.join(STRATEGIES)}")
    parser.add_argument("--task", help="one task; all of them without it")
    parser.add_argument("--json", action="store_true", help="a list of objects instead of lines")
    parser.add_argument("--margin", type=float, default=0.005, help="nats per supervised token")
    parser.add_argument("--budget", type=float, default=5.0, help="full-run equivalents")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    wishes = {"margin": options.margin, "budget": options.budget, "seed": options.seed}
    try:
        measured = read_tasks(options.table)
        if options.task is not None and options.task not in measured:
            known = ", ".join(sorted(measured))
            raise DataError(f"The task {options.task!r} is not in {options.table}; choose one of {known}.")
        tasks = [measured[options.task]] if options.task else list(measured.values())
        scores = []
        for task in tasks:
            runner = TableRunner(task)
            scores.append(play_and_score(make_strategy(options.strategy, runner.context(**wishes)), runner))
    except LoratuneError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if options.json:
        print(json.dumps([s.to_dict() for s in scores], indent=1))
        return 0
    columns: dict[str, list[Score | None]] = {options.strategy: list(scores)}
    for name, rank in (("always the largest rank", None), ("always r = 16", 16)):
        runners = [TableRunner(task) for task in tasks]
        columns[name] = [always(runner, runner.context(**wishes), rank) for runner in runners]
    for index, task in enumerate(tasks):
        print(task.name)
        for name, column in columns.items():
            print(table_line(name, column[index]))
    print(f"All {len(tasks)} tasks, margin {options.margin:g} nats, budget {options.budget:g} runs")
    for name, column in columns.items():
        print(summary_line(name, column))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
