"""Replays a strategy on a table of measured runs and scores its answer (`bench/simulated.py`).

python bench/replay.py --table TABLE.csv --strategy evidence [--task T] [--json]
python bench/replay.py --table TABLE.csv --benchmark OUT.csv --margin 0.0015 --budgets 5 10 15 20 --seeds 5

`--benchmark` plays every strategy with several budgets, seeds and learning-rate priors (the law, a flat 2e-4, the law
4x too high and 4x too low), and appends one line for each to a CSV file.
"""

import argparse
import csv
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path

import numpy as np

from loratune.errors import DataError, LoratuneError
from loratune.search.make import STRATEGIES, make_strategy
from play import Score, always, play_and_score
from simulated import MeasuredTask, TableRunner, read_tasks

HEADER = (
    *(
        "table",
        "margin",
        "prior",
        "strategy",
        "budget",
        "answers",
        "inferior",
        "overshoot_mean",
        "overshoot_max",
    ),
    *("regret_mean", "regret_max", "worse", "diverged", "cost_mean", "cost_share"),
)
PRIORS: dict[str, dict[str, float]] = {
    "law": {},
    "flat 2e-4": {"flat_rate": 2e-4},
    "4x high": {"rate_factor": 4.0},
    "4x low": {"rate_factor": 0.25},
}
FIXED_RANKS: dict[str, int | None] = {"always the largest rank": None, "always r = 16": 16}


def benchmark(options: argparse.Namespace) -> None:
    """Every strategy, budget and prior, over seeds; the fixed ranks have no budget."""
    tasks = list(read_tasks(options.table).values())
    new = not options.benchmark.exists()
    with options.benchmark.open("a", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        if new:
            out.writerow(HEADER)
        for prior, wishes in PRIORS.items():
            for name in (*STRATEGIES, *FIXED_RANKS):
                if name == "gp" or (prior != "law" and name in ("random", "tpe", "guide", "grid")):
                    continue  # gp: minutes for each answer; the others do not use the prior
                for budget in options.budgets if name in STRATEGIES else options.budgets[-1:]:
                    scores = list(_answers(tasks, name, options, budget, wishes))
                    line = _line(scores)
                    out.writerow([options.table.stem, options.margin, prior, name, budget, *line])
                    print(options.table.stem, prior, name, budget, *line, flush=True)


def _answers(
    tasks: Sequence[MeasuredTask],
    name: str,
    options: argparse.Namespace,
    budget: float,
    wishes: dict[str, float],
) -> Iterator[Score]:
    for task in tasks:
        seeds = {cell.seed for cell in task.cells}
        same = len(seeds) == 1 and name != "random" and name != "tpe"  # no seed changes anything
        for seed in range(1 if same else options.seeds):
            runner = TableRunner(task)
            context = runner.context(margin=options.margin, budget=budget, seed=seed)
            context = context.changed(**wishes)
            if name in FIXED_RANKS:
                found = always(runner, context, FIXED_RANKS[name])
            else:
                if name == "grid" and 16 in context.wishes.ranks:
                    context = context.changed(ranks=(16,))
                found = play_and_score(make_strategy(name, context), runner)
            if found is not None:
                yield found


def _line(scores: Sequence[Score]) -> list[float | int | str]:
    if not scores:
        return [0]
    finite = [s.regret for s in scores if isfinite(s.regret)]
    return [
        len(scores),
        round(float(np.mean([s.inferior for s in scores])), 4),
        round(float(np.mean([s.overshoot for s in scores])), 3),
        max(s.overshoot for s in scores),
        round(float(np.mean(finite)), 5) if finite else "",
        round(max(finite), 5) if finite else "",
        round(float(np.mean([s.worse for s in scores])), 4),
        len(scores) - len(finite),
        round(float(np.mean([s.cost for s in scores])), 3),
        round(float(np.mean([s.cost_share for s in scores])), 4),
    ]


def table_line(name: str, s: Score | None) -> str:
    if s is None:
        return f"  {name:<22} (the table has no such rank)"
    rank, rate, batch, alpha = s.chosen
    return (
        f"  {name:<22} rank {rank:>3}  lr {rate:<7g} batch {batch:<4} alpha {alpha:<5g} "
        f"{'INFERIOR' if s.inferior else 'adequate'}  overshoot {s.overshoot:.1f}  regret {s.regret:7.3%}"
        f"{' (significant)' if s.worse else ''}  "
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
        f"significantly worse {np.mean([s.worse for s in known]):.0%}  "
        f"cost {np.mean([s.cost for s in known]):.2f} runs ({np.mean([s.cost_share for s in known]):.1%})"
    )


def drawn(task: MeasuredTask, draw: int) -> MeasuredTask:
    """The task with its repeats exchanged at random, cell by cell, as if others had run first; draw 0 as it is."""
    if draw == 0:
        return task
    random = np.random.default_rng(draw)
    seeds = sorted({cell.seed for cell in task.cells})
    # a table's losses by row do not tell alpha: the runs of a place are exchanged together
    places = sorted({(c.rank, c.learning_rate, c.batch_size) for c in task.cells})
    becomes = {place: dict(zip(seeds, random.permutation(seeds), strict=True)) for place in places}
    cells = [
        replace(cell, seed=int(becomes[cell.rank, cell.learning_rate, cell.batch_size][cell.seed]))
        for cell in task.cells
    ]
    examples = {
        (rank, rate, batch, float(becomes[int(rank), rate, int(batch)][int(seed)])): values
        for (rank, rate, batch, seed), values in task.examples.items()
    }
    return replace(task, cells=tuple(cells), examples=examples)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--table", type=Path, required=True, help="CSV of measured runs")
    parser.add_argument("--strategy", default="evidence", help=f"one of {', '.join(STRATEGIES)}")
    parser.add_argument("--task", help="one task; all of them without it")
    parser.add_argument("--json", action="store_true", help="a list of objects instead of lines")
    parser.add_argument("--margin", type=float, default=0.005, help="nats per supervised token")
    parser.add_argument("--budget", type=float, default=5.0, help="full-run equivalents")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--draws", type=int, default=1, help="play so often, each time with repeats exchanged"
    )
    parser.add_argument("--benchmark", type=Path, help="append the scores of all strategies to this CSV")
    parser.add_argument("--budgets", type=float, nargs="+", default=[5.0, 10.0, 15.0, 20.0])
    parser.add_argument("--seeds", type=int, default=3, help="with --benchmark")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    wishes = {"margin": options.margin, "budget": options.budget, "seed": options.seed}
    if options.benchmark is not None:
        benchmark(options)
        return 0
    try:
        measured = read_tasks(options.table)
        if options.task is not None and options.task not in measured:
            known = ", ".join(sorted(measured))
            raise DataError(f"The task {options.task!r} is not in {options.table}; choose one of {known}.")
        chosen = [measured[options.task]] if options.task else list(measured.values())
        tasks = [drawn(task, draw) for draw in range(options.draws) for task in chosen]
        scores = []
        for index, task in enumerate(tasks):
            runner, seed = TableRunner(task), options.seed + index // len(chosen)
            context = runner.context(**{**wishes, "seed": seed})
            scores.append(play_and_score(make_strategy(options.strategy, context), runner))
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
    print(f"All {len(tasks)} answers, margin {options.margin:g} nats, budget {options.budget:g} runs")
    for name, column in columns.items():
        print(summary_line(name, column))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
