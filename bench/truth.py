"""Proves the search's rules on generated tables whose truth is known: coverage of what it claims, false claims,
how good its choice is. Deterministic.

python bench/truth.py --repeats 200 --first-seed 1000 --out bench/results/truth.csv
"""

import argparse
import csv
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from math import log, log2
from pathlib import Path

import numpy as np

from loratune.runners.simulated import Cell, MeasuredTask, TableRunner
from loratune.search.make import make_strategy
from loratune.values import Decision
from play import play

RANKS = (1, 2, 4, 8, 16, 32, 64, 128)
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
FRACTIONS = (0.125, 0.25, 0.5, 1.0)
MARGIN = 0.005


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Expected NLL: a rank curve plus a parabola in log learning rate, whose optimum moves with the rank."""

    curve: Callable[[int], float]
    """Expected NLL of a rank at its best learning rate."""
    noise: float = 0.001
    """Sd between seeds, nats."""
    row_noise: float = 0.02
    """Sd over rows of what a setting does to a row, nats."""
    slope: float = -0.6
    """Exponent of the rank in the best learning rate."""
    rate_at_16: float = 1e-3
    curvature: float = 0.02
    """Nats added at a factor e from the best learning rate."""
    diverges_above: float = 30.0
    """Ratio to the best learning rate above which a run diverges."""
    early_shift: float = -0.26
    """Exponent of the share of the run in the best learning rate."""
    seeds: int = 4
    rows: int = 400
    ranks: tuple[int, ...] = RANKS

    def nll(self, r: int, rate: float, fraction: float = 1.0) -> float:
        """Expected over rows and seeds; before the end higher rates look better, and all ranks alike."""
        best = self.rate_at_16 * (r / 16) ** self.slope * fraction**self.early_shift
        return self.curve(r) + self.curvature * log(rate / best) ** 2

    def best(self, r: int) -> float:
        return min(self.nll(r, rate) for rate in RATES)

    def smallest_adequate(self) -> int:
        return next(r for r in self.ranks if self.best(r) - self.best(self.ranks[-1]) <= MARGIN)

    def table(self, generator: np.random.Generator) -> MeasuredTask:
        """Every cell that does not diverge; early readings hide the rank."""
        level = generator.exponential(0.5, self.rows)
        level -= level.mean()  # rows differ; the same for every run, so that pairing removes it
        cells, examples = [], {}
        for r in self.ranks:
            for rate in RATES:
                if rate > self.diverges_above * self.rate_at_16 * (r / 16) ** self.slope:
                    continue
                setting = self.row_noise * generator.standard_normal(self.rows)
                for seed in range(self.seeds):
                    rows = self.nll(r, rate) + level + setting + self.noise * generator.standard_normal()
                    rows = rows + self.row_noise * generator.standard_normal(self.rows)
                    examples[(float(r), rate, 16.0, float(seed))] = rows
                    for fraction in FRACTIONS:
                        blind = (1 - fraction) * (0.5 + self.curve(self.ranks[-1]) - self.curve(r))
                        blind += self.nll(r, rate, fraction) - self.nll(r, rate)
                        cells.append(
                            Cell(
                                rank=r,
                                learning_rate=rate,
                                batch_size=16,
                                lora_alpha=2.0 * r,
                                seed=seed,
                                fraction=fraction,
                                epochs=1,
                                nll=float(rows.mean()) + blind,
                                exact_match=float("nan"),
                            )
                        )
        return MeasuredTask(name="planted", cells=tuple(cells), noise=0.0, examples=examples)


def power(scale: float, exponent: float) -> Callable[[int], float]:
    return lambda r: 0.5 + scale * r**-exponent


def knee(at: int, height: float = 0.03) -> Callable[[int], float]:
    """Flat from rank `at` on, each halving below it costs `height`."""
    return lambda r: 0.5 + height * max(log2(at / r), 0.0)


FLAT = power(0.0, 1.0)
SCENARIOS: dict[str, Truth] = {
    "power law, gentle": Truth(curve=power(0.02, 0.7)),
    "power law, usual": Truth(curve=power(0.06, 0.65)),
    "power law, steep": Truth(curve=power(0.3, 0.65)),
    "power law, slow": Truth(curve=power(0.06, 0.35)),
    "power law, quiet": Truth(curve=power(0.06, 0.65), noise=2e-4, row_noise=0.005),
    "power law, noisy": Truth(curve=power(0.06, 0.65), noise=0.004, row_noise=0.05),
    "power law, drowned": Truth(curve=power(0.06, 0.65), noise=0.02, row_noise=0.1),
    "knee at 2": Truth(curve=knee(2)),
    "knee at 8": Truth(curve=knee(8)),
    "knee at 32": Truth(curve=knee(32)),
    "rates interact": Truth(curve=power(0.06, 0.65), slope=-0.9, curvature=0.05),
    "diverging corner": Truth(curve=power(0.06, 0.65), diverges_above=2.5, rate_at_16=5e-4),
    "no rank effect": Truth(curve=FLAT, slope=0.0),
    "no rank effect, noisy": Truth(curve=FLAT, slope=0.0, noise=0.004, row_noise=0.05),
    "all equal": Truth(curve=FLAT, curvature=0.0),
    "all equal, noisy": Truth(curve=FLAT, curvature=0.0, noise=0.004, row_noise=0.05),
    "all equal, 2 seeds": Truth(curve=FLAT, curvature=0.0, seeds=2),
    "all equal, 2 seeds, noisy": Truth(curve=FLAT, curvature=0.0, noise=0.004, row_noise=0.05, seeds=2),
}


@dataclass(kw_only=True)
class Tally:
    """What was claimed in the repeats of one scenario, against the truth."""

    silent: list[bool] = field(default_factory=list)
    """For each run: whether no rank has an interval, as too little was repeated."""
    covered: list[bool] = field(default_factory=list)
    """For each rank with an interval: whether the true difference to the reference lies inside."""
    covered_chosen: list[bool] = field(default_factory=list)
    """The same for the rank that was recommended."""
    false_adequate: list[bool] = field(default_factory=list)
    """For each run: whether a rank was shown adequate that loses more than the margin."""
    false_inferior: list[bool] = field(default_factory=list)
    false_differs: list[bool] = field(default_factory=list)
    """For each run with equal settings: whether anything says of one that it differs or is inferior."""
    inferior: list[bool] = field(default_factory=list)
    """Whether the recommended rank loses more than the margin at its best."""
    inferior_unsaid: list[bool] = field(default_factory=list)
    """Whether it does, and the report does not say that it was not shown as good."""
    stated: list[float] = field(default_factory=list)
    """The probability of being adequate that a rank was taken with, where it was not shown as good."""
    held: list[bool] = field(default_factory=list)
    """Whether that rank was adequate."""
    overshoot: list[float] = field(default_factory=list)
    regret: list[float] = field(default_factory=list)
    cost: list[float] = field(default_factory=list)

    def row(self) -> dict[str, float | int]:
        """Means; counts of what the coverage rests on."""
        return {
            "runs": len(self.cost),
            "claims": len(self.covered),
            "coverage": _mean(self.covered),
            "coverage_chosen": _mean(self.covered_chosen),
            "silent": _mean(self.silent),
            "false_adequate": _mean(self.false_adequate),
            "false_inferior": _mean(self.false_inferior),
            "false_differs": _mean(self.false_differs),
            "inferior": _mean(self.inferior),
            "inferior_unsaid": _mean(self.inferior_unsaid),
            "stated": _mean(self.stated),
            "held": _mean(self.held),
            "overshoot": _mean(self.overshoot),
            "regret_nats": _mean(self.regret),
            "cost": _mean(self.cost),
        }


def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 4) if values else float("nan")


RANKS_CLAIMED = re.compile(r"Rank (\d+) is (?:non-inferior to|as good as) rank (\d+)")
STATED = re.compile(r"with probability ([\d.]+)")


def judge(truth: Truth, runner: TableRunner, decision: Decision, cost: float, tally: Tally) -> None:
    """Adds one run."""
    cells = {entry["r"]: entry["cell_rate"] for entry in decision.stages[0].details["ranks"]}
    chosen = decision.hyper_parameters
    inside: dict[int, bool] = {}
    adequate = inferior = differs = equal = unsaid = False
    for claim in decision.evidence:
        found = RANKS_CLAIMED.match(claim.claim)
        if found is None:
            continue
        r, reference = int(found[1]), int(found[2])
        true = truth.nll(r, cells[r]) - truth.nll(reference, cells[reference])
        adequate |= bool(claim.holds) and true > MARGIN
        no_better = "no, it loses" in claim.claim
        inferior |= no_better and true <= MARGIN
        unsaid |= r == chosen.r and bool(claim.holds)
        if claim.interval is not None:
            inside[r] = claim.interval[0] <= true <= claim.interval[1]
        if abs(true) < 1e-12:
            equal = True
            differs |= no_better or not (
                claim.interval is None or claim.interval[0] <= 0 <= claim.interval[1]
            )
        if (stated := STATED.search(claim.claim)) is not None:
            tally.stated.append(float(stated[1]))
            tally.held.append(truth.best(r) - truth.best(reference) <= MARGIN)
    tally.silent.append(not inside)
    tally.covered += inside.values()
    tally.covered_chosen += [inside[r] for r in inside if r == chosen.r]
    tally.false_adequate.append(adequate)
    tally.false_inferior.append(inferior)
    tally.false_differs += [differs] if equal else []
    cell = runner.snap(chosen)
    lowest = min(truth.best(r) for r in truth.ranks)
    tally.inferior.append(truth.best(chosen.r) - truth.best(truth.ranks[-1]) > MARGIN)
    tally.inferior_unsaid.append(tally.inferior[-1] and unsaid)
    tally.overshoot.append(max(log2(chosen.r / truth.smallest_adequate()), 0.0))
    if cell is not None:
        tally.regret.append(truth.nll(cell.rank, cell.learning_rate) - lowest)
    tally.cost.append(cost)


def run(truth: Truth, budget: float, repeats: int, first: int = 0, **wishes: float) -> Tally:
    """The evidence strategy on `repeats` tables of one truth, drawn with the seeds from `first` on."""
    tally = Tally()
    for repeat in range(first, first + repeats):
        runner = TableRunner(truth.table(np.random.default_rng(repeat)))
        context = replace(runner.context(margin=MARGIN, budget=budget, seed=repeat), **wishes)  # type: ignore[arg-type]
        strategy = make_strategy("evidence", context)
        history = play(strategy, runner)
        judge(truth, runner, strategy.decide(history), sum(result.cost for result in history), tally)
    return tally


def rows(
    repeats: int, budgets: Sequence[float], first: int, part: str = ""
) -> Iterator[dict[str, float | int | str]]:
    """One for each scenario with `part` in its name and each budget, then all of a budget together."""
    for budget in budgets:
        total = Tally()
        for index, (name, truth) in enumerate(SCENARIOS.items()):
            if part not in name:
                continue
            tally = run(truth, budget, repeats, first + 1000 * index)  # each its own noise
            for each in fields(Tally):
                getattr(total, each.name).extend(getattr(tally, each.name))
            yield {"scenario": name, "budget": budget, **tally.row()}
        yield {"scenario": "all", "budget": budget, **total.row()}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--budgets", type=float, nargs="+", default=[5.0, 15.0, 30.0])
    parser.add_argument("--first-seed", type=int, default=0, help="others than a rule was chosen with")
    parser.add_argument("--scenarios", default="", metavar="PART", help="only those with this in their name")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    out = None
    for row in rows(options.repeats, options.budgets, options.first_seed, options.scenarios):
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        if options.out is not None:
            new = out is None
            with options.out.open("w" if new else "a", newline="") as file:
                out = csv.DictWriter(file, fieldnames=list(row), lineterminator="\n")
                if new:
                    out.writeheader()
                out.writerow(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
