"""Holds a strategy against worlds whose truth is known (`worlds.py`): does what it says cover, is what it shows so, is
its choice better than that of simple policies at equal cost? Deterministic.

python bench/truth.py --count 40 --out bench/results/truth.csv [--worlds U-shaped ...] [--by launch-bound]

Intervals are held against ranks each at its own best learning rate, whatever rates the search had found.
"""

import argparse
import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import log2
from pathlib import Path

import numpy as np

from baselines import ALL
from devices import DEVICES, Device, alone, play_on
from loratune.values import Decision, HyperParameters, SearchContext
from play import play
from worlds import WORLDS, World, WorldRunner

MARGIN = 0.005
OPPONENTS = ("rank 16 with 4 rates", "random")
BUDGETS = (5.0, 8.0, 15.0, 30.0)
EQUAL = 1e-12
RANKS_CLAIMED = re.compile(r"Rank (\d+) is (?:non-inferior to|as good as) rank (\d+)")
TAKEN = re.compile(
    r"rank (\d+) is taken because .* with (?:a )?probability (?:above )?([\d.]+\d)", re.IGNORECASE
)
COLUMNS = (
    *(
        "commit",
        "world",
        "by",
        "budget",
        "strategy",
        "answers",
        "claims",
        "coverage",
        "silent",
        "wrong_differs",
    ),
    *("false_adequate", "false_inferior", "stated", "held", "adequate", "overshoot", "nats_mean", "nats_max"),
    *("above_four_rates", "above_random", "runs"),
)


@dataclass(kw_only=True)
class Tally:
    """What was claimed in the draws of one world, against the truth."""

    covered: list[bool] = field(default_factory=list)
    """For each pair of ranks with an interval: whether their true difference lies inside."""
    silent: list[bool] = field(default_factory=list)
    """For each answer: whether no pair has an interval."""
    wrong_differs: list[bool] = field(default_factory=list)
    """For each answer with intervals: whether one says "differs" of equal ranks, or with the wrong sign."""
    false_adequate: list[bool] = field(default_factory=list)
    """For each answer: whether a rank is shown adequate that loses more than the margin, to its reference or to the
    best of those measured."""
    false_inferior: list[bool] = field(default_factory=list)
    """For each answer: whether a rank within the margin of its reference is said to lose more."""
    stated: list[float] = field(default_factory=list)
    """The probability of being adequate with which a rank was taken that is not shown adequate."""
    held: list[bool] = field(default_factory=list)
    """Whether that rank is."""
    adequate: list[bool] = field(default_factory=list)
    """Whether the recommended rank is within the margin of the best one."""
    overshoot: list[float] = field(default_factory=list)
    """Doublings above the smallest adequate rank."""
    regret: list[float] = field(default_factory=list)
    """Expected NLL of the recommended setting above the best one's, nats."""
    runs: list[float] = field(default_factory=list)

    def row(self) -> dict[str, float | int | str]:
        """Means, and counts of what they rest on."""
        return {
            "answers": len(self.runs),
            "claims": len(self.covered),
            "coverage": _mean(self.covered),
            "silent": _mean(self.silent),
            "wrong_differs": _mean(self.wrong_differs),
            "false_adequate": _mean(self.false_adequate),
            "false_inferior": _mean(self.false_inferior),
            "stated": _mean(self.stated),
            "held": _mean(self.held),
            "adequate": _mean(self.adequate),
            "overshoot": _mean(self.overshoot, 2),
            "nats_mean": _mean(self.regret, 5),
            "nats_max": round(max(self.regret), 5),
            "runs": _mean(self.runs, 2),
        }


def _mean(values: Sequence[float], digits: int = 4) -> float | str:
    return round(float(np.mean(values)), digits) if values else ""


def answer(
    world: World, draw: int, name: str, budget: float, device: Device | None = None
) -> tuple[WorldRunner, SearchContext, Decision, float]:
    """One search in one draw of the world; (…, its cost in full runs by tokens)."""
    runner = WorldRunner(world, draw)
    context = runner.context(margin=MARGIN, budget=budget, seed=draw)
    if device is not None:
        context = device.told(context)
    strategy = ALL[name](context)
    if device is None:
        history = play(strategy, runner)
    else:
        history, _ = play_on(strategy, runner, budget * alone(context))
    return runner, context, strategy.decide(history), sum(result.cost for result in history)


def judge(world: World, decision: Decision, tally: Tally) -> None:
    """Adds what one decision claims of ranks."""
    inside, differs, adequate, inferior = [], False, False, False
    measured = [entry["r"] for entry in decision.stages[0].details.get("ranks", ())]
    for claim in decision.evidence:
        if (taken := TAKEN.search(claim.claim)) is not None:
            tally.stated.append(float(taken[2]))
            tally.held.append(world.curve(int(taken[1])) - min(map(world.curve, measured)) <= MARGIN)
        found = RANKS_CLAIMED.match(claim.claim)
        if found is None:
            continue
        own, other = (world.curve(int(r)) for r in found.groups())
        true = own - other
        best = min((world.curve(r) for r in measured), default=other)
        adequate |= claim.holds is True and own - min(other, best) > MARGIN + EQUAL
        inferior |= "no, it loses" in claim.claim and true <= MARGIN
        if claim.interval is not None:
            low, high = claim.interval
            inside.append(low <= true <= high)
            differs |= (low > 0 and true < EQUAL) or (high < 0 and true > -EQUAL)
    tally.covered += inside
    tally.silent.append(not inside)
    tally.wrong_differs += [differs] if inside else []
    tally.false_adequate.append(adequate)
    tally.false_inferior.append(inferior)


def score(
    world: World, runner: WorldRunner, context: SearchContext, chosen: HyperParameters, tally: Tally
) -> None:
    """Adds how good one choice is."""
    tally.adequate.append(world.adequate(chosen.r, MARGIN))
    tally.overshoot.append(max(log2(chosen.r / world.smallest_adequate(MARGIN)), 0.0))
    tally.regret.append(runner.nll(context, chosen) - world.best)


def run(
    world: World,
    budget: float,
    count: int,
    first: int = 0,
    *,
    name: str = "evidence",
    device: Device | None = None,
) -> Tally:
    """A strategy in `count` draws of a world, from the draw `first` on."""
    tally = Tally()
    for draw in range(first, first + count):
        runner, context, decision, cost = answer(world, draw, name, budget, device)
        if name not in OPPONENTS:
            judge(world, decision, tally)
        score(world, runner, context, decision.hyper_parameters, tally)
        tally.runs.append(cost)
    return tally


def rows(options: argparse.Namespace) -> Iterator[dict[str, float | int | str]]:
    """One for each way of counting, budget, world and strategy."""
    devices = {"runs": None, **DEVICES}
    for by in options.by:
        for budget in options.budgets:
            for index, name in enumerate(WORLDS):
                if options.worlds and name not in options.worlds:
                    continue
                opponents: dict[str, float] = {}
                for strategy in dict.fromkeys((*OPPONENTS, *options.strategies)):
                    first = options.first + 1000 * index  # each world its own noise
                    tally = run(WORLDS[name], budget, options.count, first, name=strategy, device=devices[by])
                    opponents[strategy] = float(np.mean(tally.regret))
                    above = [
                        round(opponents[strategy] - opponents[other], 5)
                        for other in OPPONENTS
                        if other in opponents
                    ]
                    place = {
                        "commit": options.commit,
                        "world": name,
                        "by": by,
                        "budget": budget,
                        "strategy": strategy,
                    }
                    yield {
                        **place,
                        **tally.row(),
                        **dict(zip(("above_four_rates", "above_random"), above, strict=False)),
                    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=40, help="draws of each world")
    parser.add_argument("--budgets", type=float, nargs="+", default=list(BUDGETS))
    parser.add_argument("--by", nargs="+", default=["runs", *DEVICES], choices=["runs", *DEVICES])
    parser.add_argument("--strategies", nargs="+", default=["evidence"], choices=list(ALL), metavar="NAME")
    parser.add_argument("--worlds", nargs="+", default=[], choices=list(WORLDS), metavar="NAME")
    parser.add_argument("--first", type=int, default=0, help="first draw: others than a rule was chosen with")
    parser.add_argument("--commit", default="", help="what was measured, written into each line")
    parser.add_argument("--out", type=Path, help="append to this CSV")
    options = parser.parse_args(arguments)
    for row in rows(options):
        print("  ".join(f"{key} {row[key]}" for key in COLUMNS if row.get(key, "") != ""), flush=True)
        if options.out is not None:
            new = not options.out.exists()
            with options.out.open("a", newline="") as file:
                out = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                if new:
                    out.writeheader()
                out.writerow(row)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
