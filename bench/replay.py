"""Replays a strategy on a table of measured runs and scores its answer (`docs/design.md`, "Simulated runs").

python bench/replay.py --table TABLE.csv --strategy evidence [--task T] [--json]
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite, log2
from pathlib import Path
from typing import Any

import numpy as np

from loratune.errors import LoratuneError
from loratune.run.simulated import Cell, TableRunner, play, read_table
from loratune.search.bracket import Bracket, bracket
from loratune.search.make import STRATEGIES, make_strategy
from loratune.search.procedure import Ledger, Procedure, ask, decide
from loratune.search.space import RateScale, base_batch, hyper_parameters, trial, usual_rate
from loratune.values import HyperParameters, SearchContext, TrialResult

Key = tuple[int, float, int, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How one answer did on one task."""

    task: str
    chosen: Key
    """Rank, learning rate, batch size, alpha of the cell."""
    regret: float
    """Relative NLL above the best cell of the table; infinite (null in JSON) where the choice diverges."""
    cost: float
    """Full-run equivalents."""
    cost_share: float
    """Of what the whole table cost."""
    inferior: bool
    """Whether the rank's best cell loses more than the margin to the largest rank's."""
    overshoot: float
    """Doublings above the smallest adequate rank; 0 below it."""
    evidence: tuple[dict[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        names = ("rank", "learning_rate", "batch_size", "lora_alpha")
        return {
            "task": self.task,
            "chosen": dict(zip(names, self.chosen, strict=True)),
            "regret": self.regret if isfinite(self.regret) else None,
            "cost_share": self.cost_share,
            "rank_inferior": self.inferior,
            "evidence": list(self.evidence),
        }


def key_of(cell: Cell) -> Key:
    return cell.rank, cell.learning_rate, cell.batch_size, cell.lora_alpha


def score(
    runner: TableRunner,
    setting: HyperParameters,
    cost: float,
    margin: float,
    evidence: Sequence[dict[str, Any]] = (),
) -> Score:
    """Judges a setting by the table's means over seeds and repeats at the end of the runs."""
    values: dict[Key, list[float]] = {}
    for cell in runner.full:
        values.setdefault(key_of(cell), []).append(cell.nll)
    means = {key: float(np.mean(nlls)) for key, nlls in values.items()}
    ranks = sorted({key[0] for key in means})
    best = {r: min(nll for key, nll in means.items() if key[0] == r) for r in ranks}
    adequate = [r for r in ranks if best[r] - best[ranks[-1]] <= margin]
    snapped = runner.snap(setting)
    chosen: Key = (setting.r, setting.learning_rate, setting.batch_size, setting.lora_alpha)
    if snapped is not None:
        chosen = key_of(snapped)
    lowest = min(means.values())
    return Score(
        task=runner.task,
        chosen=chosen,
        regret=(means.get(chosen, inf) - lowest) / lowest,
        cost=cost,
        cost_share=cost / sum(max(len(cell.repeats), 1) for cell in runner.full),
        inferior=setting.r not in adequate,
        overshoot=max(log2(setting.r / adequate[0]), 0.0),
        evidence=tuple(evidence),
    )


def replay(table: Path, task: str, strategy: str, wishes: dict[str, Any]) -> Score:
    """One strategy on one task."""
    runner = TableRunner(table, task)
    player = make_strategy(strategy, runner.context(**wishes))
    history = play(player, runner)
    decision = player.decide(history)
    cost = sum(result.cost for result in history)
    evidence = [claim.to_dict() for claim in decision.evidence]
    return score(runner, decision.hyper_parameters, cost, wishes["margin"], evidence)


def always(table: Path, task: str, rank: int | None, wishes: dict[str, Any]) -> Score | None:
    """A fixed rank (None: the largest) at the best learning rate of its bracket, one seed."""
    runner = TableRunner(table, task)
    context: SearchContext = runner.context(**wishes)
    r = max(context.ranks) if rank is None else rank
    if r not in context.ranks:
        return None
    batch = base_batch(context)

    def procedure(ledger: Ledger) -> Procedure[Bracket]:
        return bracket(
            lambda rate: trial(hyper_parameters(context, r=r, rate=rate, batch=batch), context.seed),
            scale=RateScale.of(context),
            centre=usual_rate(context, r, batch),
            count=3,
            extensions=3,
            refine=False,
        )

    history: list[TrialResult] = []
    while trials := ask(procedure, context, history):
        history.extend(runner.run(trials, context))
    rate = decide(procedure, context, history).best
    setting = hyper_parameters(context, r=r, rate=rate, batch=batch)
    return score(runner, setting, sum(result.cost for result in history), wishes["margin"])


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
        tasks = [options.task] if options.task else list(read_table(options.table))
        scores = [replay(options.table, task, options.strategy, wishes) for task in tasks]
    except LoratuneError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if options.json:
        print(json.dumps([s.to_dict() for s in scores], indent=1))
        return 0
    columns: dict[str, list[Score | None]] = {
        options.strategy: list(scores),
        "always the largest rank": [always(options.table, task, None, wishes) for task in tasks],
        "always r = 16": [always(options.table, task, 16, wishes) for task in tasks],
    }
    for index, task in enumerate(tasks):
        print(task)
        for name, column in columns.items():
            print(table_line(name, column[index]))
    print(f"All {len(tasks)} tasks, margin {options.margin:g} nats, budget {options.budget:g} runs")
    for name, column in columns.items():
        print(summary_line(name, column))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
