"""How many requests a search makes on a GPU where width is nearly free, how wide they are, and what they take.

    PYTHONPATH=src python bench/request_widths.py [--draws 4] [--budgets 8 10] [--worlds "label task"]

Plays the default strategy in worlds whose truth is known (`worlds.py`), as if on 2,000 short labelled rows, 3 epochs,
with batch size, alpha and epochs to choose as in a real `tune`, on the step times of an H200 (SmolLM2-135M, rows of
25.4 tokens). Nothing is trained. A request takes what its trials take side by side and `--entering` seconds more, for
entering them and recording its graphs. Prints a line for each world and one for all.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from loratune.search.make import make_strategy
from loratune.values import HyperParameters, Pace, SearchContext, TrialResult
from worlds import BATCH, WORLDS, WorldRunner

ROWS, LENGTH, EPOCHS, LABELS = 2_000, 25.4, 3.0, 77
RATES = ((1, 41_318), (16, 275_571), (32, 339_181), (64, 377_000), (128, 376_442))
"""(trials of batch 16, tokens per second) of one step (docs/log.md, short rows)."""
FORWARD = 800_000.0
"""Evaluated tokens per second."""
STAGES = (
    "power law",
    "power law, noisy",
    "label task",
    "U-shaped",
    "law's level wrong by 3",
    "all equal, noisy",
)


def pace() -> Pace:
    steps = [(16 * LENGTH * trials, 16 * LENGTH * trials / rate) for trials, rate in RATES]
    return Pace(steps=((0.0, steps[0][1]), *steps), forward=FORWARD, slots=64)


class StagedRunner(WorldRunner):
    """The world with batch size, alpha and passes: another batch size, alpha or number of passes changes nothing but
    the best learning rate, by the laws."""

    def ratio(self, context: SearchContext, setting: HyperParameters, fraction: float = 1.0) -> float:
        found = super().ratio(context, setting, fraction)
        return float(found * (setting.batch_size / BATCH) ** -0.5 * (setting.alpha_ratio / 2) ** 0.5)

    def told(self, budget: float, margin: float) -> SearchContext:
        context = self.context(margin=margin, budget=budget, seed=self.draw)
        return context.changed(
            rows=ROWS,
            tokens=round(ROWS * LENGTH),
            labels=LABELS,
            validation_tokens=round(400 * LENGTH),
            ranks=self.world.ranks[:6],
            batch_sizes=(),
            alpha_ratios=(),
            largest_batch=1024,
            useful_batches=(8.0, 32.0),
            epochs=EPOCHS,
            epoch_choices=(1.0, 2.0, 3.0, 5.0),
            pace=pace(),
        )


@dataclass
class Played:
    widths: list[int]
    seconds: float
    tokens: float
    regret: float
    rank: int


def play(runner: StagedRunner, context: SearchContext, entering: float) -> Played:
    strategy = make_strategy("evidence", context)
    history: list[TrialResult] = []
    widths, seconds, tokens = [], 0.0, 0.0
    while trials := strategy.ask(history):
        widths.append(len(trials))
        seconds += context.seconds(trials) + entering
        tokens += sum(steps * each for steps, each in map(context.load, trials))
        history += runner.run(trials, context)
    chosen = strategy.decide(history).hyper_parameters
    lowest = min(map(runner.world.curve, context.wishes.ranks))
    return Played(widths, seconds, tokens, runner.nll(context, chosen) - lowest, chosen.r)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--budgets", type=float, nargs="+", default=[5.0, 8.0, 10.0])
    parser.add_argument("--worlds", nargs="+", default=list(STAGES), choices=list(WORLDS), metavar="NAME")
    parser.add_argument("--margin", type=float, default=0.011)
    parser.add_argument(
        "--entering", type=float, default=2.0, help="seconds that a request takes beside its steps"
    )
    options = parser.parse_args(arguments)
    for budget in options.budgets:
        everything: list[Played] = []
        for name in options.worlds:
            found = []
            for draw in range(options.first, options.first + options.draws):
                runner = StagedRunner(WORLDS[name], draw)
                found.append(play(runner, runner.told(budget, options.margin), options.entering))
            everything += found
            print(line(f"{budget:g}x {name}", found), found[0].widths, flush=True)
        print(line(f"{budget:g}x all", everything), flush=True)


def line(name: str, found: Iterable[Played]) -> str:
    found = list(found)
    means = np.mean(
        [(len(each.widths), sum(each.widths), each.seconds, each.regret) for each in found], axis=0
    )
    speed = sum(each.tokens for each in found) / sum(each.seconds for each in found)
    return (
        f"{name:<32} requests {means[0]:4.1f}  trials {means[1]:5.1f}  seconds {means[2]:5.1f}  "
        f"tokens/s {speed:8,.0f}  regret {means[3]:.4f}"
    )


if __name__ == "__main__":
    main()
