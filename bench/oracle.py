"""What no search can beat on measured tables: least overshoot that regret and inferior ranks as wished leave.

python bench/oracle.py --table A.csv B.csv [--runs 1 2 4] [--regret 0.0025] [--inferior 0.05]

The oracle knows every table (each rank's loss at its best learning rate, and what seeds change) and runs the ranks that
all tables have at these rates; it is not told on which table it is. Its runs are drawn as normal scatter about the
tables' means. A search finds learning rates first and knows no table, so that it reaches less. The bounds are dual:
for any prices of regret, of inferior ranks and of losing to rank 16 with four rates, the cheapest answers by the exact
posterior cost at least as much as any policy's. Given everything (infinitely many runs) they are a linear program.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log2
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog

from compare import OPPONENT, answer
from loratune.maths.noninferiority import pool_seed_noise
from play import Key, cell_means
from simulated import MeasuredTask, TableRunner, read_tasks

Floats = npt.NDArray[np.float64]
DRAWS = 600
"""Of each table's runs."""
STEPS = 800
"""In search of the prices with the highest bound."""


@dataclass(frozen=True)
class Truth:
    """Tables at their common ranks: [tables, ranks], and [tables]."""

    ranks: tuple[int, ...]
    regret: Floats
    """Of a rank at its best learning rate, nats above the table's lowest cell."""
    inferior: Floats
    overshoot: Floats
    opponent: Floats
    """Regret of rank 16 with four rates."""
    seed_sd: Floats


def truth(tasks: Sequence[MeasuredTask], margin: float, orders: int = 4) -> Truth:
    """As `play.score` counts them."""
    means = [cell_means(TableRunner(task)) for task in tasks]
    ranks = tuple(sorted(set.intersection(*({key[0] for key in own} for own in means))))
    best = np.array([[min(nll for key, nll in own.items() if key[0] == r) for r in ranks] for own in means])
    adequate = best <= best[:, -1:] + margin
    doublings = np.array([log2(r) for r in ranks])
    smallest = doublings[adequate.argmax(axis=1)]

    def opponent(task: MeasuredTask, order: int) -> float:
        return answer(task, OPPONENT, margin=margin, budget=5.0, seed=order, device=None)[0].nats

    return Truth(
        ranks=ranks,
        regret=best - np.array([min(own.values()) for own in means])[:, None],
        inferior=(~adequate).astype(float),
        overshoot=np.maximum(doublings - smallest[:, None], 0.0),
        opponent=np.array([np.mean([opponent(task, order) for order in range(orders)]) for task in tasks]),
        seed_sd=np.array([_seed_sd(task, own, ranks) for task, own in zip(tasks, means, strict=True)]),
    )


def _seed_sd(task: MeasuredTask, means: Mapping[Key, float], ranks: Sequence[int]) -> float:
    """Pooled over the best cells of the ranks."""
    places = {min((key for key in means if key[0] == r), key=means.__getitem__) for r in ranks}
    groups = [
        [
            cell.nll
            for cell in TableRunner(task).full
            if (cell.rank, cell.learning_rate, cell.batch_size, cell.lora_alpha) == place
        ]
        for place in places
    ]
    return float(pool_seed_noise(groups).variance ** 0.5)


def beliefs(known: Truth, runs: int, random: np.random.Generator) -> Floats:
    """[tables, draws, tables] posterior over the tables, all as likely before; levels of losses are not told."""
    count, ranks = known.regret.shape
    scatter = random.standard_normal((count, DRAWS, ranks, runs))
    seen = known.regret[:, None, :, None] + known.seed_sd[:, None, None, None] * scatter
    means = seen.mean(axis=3)
    within = ((seen - means[..., None]) ** 2).sum(axis=(2, 3))
    apart = means[:, :, None, :] - known.regret
    apart -= apart.mean(axis=3, keepdims=True)
    squares = runs * (apart**2).sum(axis=3) + within[..., None]
    logs = -squares / (2 * known.seed_sd**2) - (ranks * runs - 1) * np.log(known.seed_sd)
    weights = np.exp(logs - logs.max(axis=2, keepdims=True))
    return np.asarray(weights / weights.sum(axis=2, keepdims=True))


def least_overshoot(known: Truth, belief: Floats, *, regret: float, inferior: float, beat: bool) -> float:
    """A lower bound of the mean overshoot of all policies whose mean regret and share of inferior ranks are at most
    these, and with `beat` whose regret exceeds the opponent's on no table: the best found by subgradients."""
    limits = [regret, inferior]
    losses = [known.regret, known.inferior]
    if beat:
        for index, own in enumerate(known.opponent):
            only = np.zeros_like(known.regret)
            only[index] = known.regret[index]
            losses.append(only)
            limits.append(own / len(known.opponent))
    scale = np.array([0.001, 0.05, *[0.0005] * (len(losses) - 2)])
    stacked, bound = np.array(losses) / scale[:, None, None], np.array(limits) / scale
    half = belief.shape[1] // 2  # prices are found with one half of the draws, the bound with the other
    first, second = belief[:, :half], belief[:, half:]
    prices, steepness = np.ones(len(losses)), np.zeros(len(losses))
    best, highest = prices, -np.inf
    for step in range(STEPS):
        value, slope = _bound(known, first, prices, stacked, bound)
        if value > highest:
            best, highest = prices, value
        steepness += slope**2
        prices = np.maximum(prices + 20 * slope / np.sqrt(steepness + 1e-12) / (1 + step) ** 0.25, 0.0)
    return _bound(known, second, best, stacked, bound)[0]


def _bound(
    known: Truth, belief: Floats, prices: Floats, stacked: Floats, limits: Floats
) -> tuple[float, Floats]:
    """What the cheapest answers at these prices cost above what the limits allow, and how it grows with each price."""
    flat = belief.reshape(-1, belief.shape[2])
    price = known.overshoot + np.einsum("k,ktr->tr", prices, stacked)
    taken = (flat @ price).argmin(axis=1)
    over = np.einsum("nt,ktn->k", flat, stacked[:, :, taken]) / len(flat) - limits
    overshoot = float(np.einsum("nt,tn->", flat, known.overshoot[:, taken])) / len(flat)
    return overshoot + float(prices @ over), over


def least_with_everything_known(known: Truth, *, regret: float, inferior: float, beat: bool) -> float | None:
    """The same where each table is recognised: exact, with answers drawn at random; None where nothing is allowed."""
    count, ranks = known.regret.shape
    rows, limits = [known.regret.ravel() / count, known.inferior.ravel() / count], [regret, inferior]
    one = np.kron(np.eye(count), np.ones(ranks))
    if beat:
        rows += list(one * known.regret.ravel())
        limits += list(known.opponent + 1e-12)
    found = linprog(
        known.overshoot.ravel() / count, A_ub=np.array(rows), b_ub=limits, A_eq=one, b_eq=np.ones(count)
    )
    return float(found.fun) if found.success else None


def _words(known: Truth, bound: float | None) -> str:
    """A bound above what any answers overshoot says that none keep the limits."""
    if bound is None or bound > known.overshoot.max(axis=1).mean():
        return "impossible"
    return f"{bound:.2f}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--table", type=Path, nargs="+", required=True)
    parser.add_argument("--margin", type=float, default=0.005, help="nats per supervised token")
    parser.add_argument("--runs", type=int, nargs="+", default=[1, 2, 4], help="of each rank")
    parser.add_argument("--regret", type=float, nargs="+", default=[0.0025, 0.0015, 0.001, 0.0007])
    parser.add_argument("--inferior", type=float, default=0.05)
    options = parser.parse_args(arguments)
    tasks = [task for path in options.table for task in read_tasks(path).values()]
    known, random = truth(tasks, options.margin), np.random.default_rng(0)
    print(f"{len(tasks)} tables, ranks {', '.join(map(str, known.ranks))}; least mean overshoot in doublings")
    seen = {runs: beliefs(known, runs, random) for runs in options.runs}
    for regret in options.regret:
        for beat in (False, True):
            wish = {"regret": regret, "inferior": options.inferior, "beat": beat}
            bounds: dict[str, float | None] = {
                f"{runs} runs": least_overshoot(known, seen[runs], **wish) for runs in options.runs
            }
            bounds["all known"] = least_with_everything_known(known, **wish)
            told = [f"{name} {_words(known, bound)}" for name, bound in bounds.items()]
            which = ", nowhere above the four rates" if beat else ""
            print(
                f"regret <= {regret:g}, inferior <= {options.inferior:.0%}{which}: {'; '.join(told)}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
