"""What evaluation costs, and one trial alone against PEFT alone, on this device.

`search`: trials of a pack with eight readings (fewer where the rows are few, by tune's rule), all but the last on
the fixed subset, the last on all validation rows.
`final`: one trial with early stopping, which looks as often and at as many rows as the final run does, and in the end
evaluates on all. Of each the share of its seconds that evaluation takes. `alone`: seconds per token of one trial and of
a plain PEFT loop in turns, so that whatever else the machine does slows both; the ratio is the median over the turns.
Random weights, banking77's lengths, validation 15 % of the training rows. Prints as it goes and appends rows to
bench/results/evaluation.csv.

python bench/evaluation.py --shape smollm2-135m --rows 200 --what alone,search,final
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from loratune.costs.readings import plan_readings
from loratune.engine.live import EarlyStopping
from loratune.model.base import BaseModel
from loratune.runners.local import early_stopping
from loratune.values import DataFacts, HyperParameters, SearchContext, Trial, Wishes
from peft_side import loop_rate
from record import append, circumstances
from rows import drawn_rows
from shapes import SHAPES, random_base
from timed import TimedEngine

RESULTS = Path(__file__).parent / "results" / "evaluation.csv"
READINGS = 8
VALIDATION_SHARE = 0.15
ALONE = 1000
"""Epochs of a trial that is stopped from outside, and patience of one that is not to stop."""


class Bench:
    """A base model and its rows."""

    def __init__(self, base: BaseModel, options: argparse.Namespace) -> None:
        self.base, self.options = base, options
        self.train = drawn_rows("banking77", base.profile.vocabulary, options.rows, seed=0)
        held_out = max(8, round(VALIDATION_SHARE * options.rows))
        self.validation = drawn_rows("banking77", base.profile.vocabulary, held_out, seed=1)
        self.facts = SearchContext(
            data=DataFacts(
                rows=len(self.train),
                tokens=int(self.train.lengths.sum()),
                supervised_tokens=int(self.train.supervised_counts.sum()),
                validation_tokens=int(self.validation.lengths.sum()),
            ),
            wishes=Wishes(epochs=options.epochs),
        )

    def recipe(self, epochs: float) -> HyperParameters:
        """Rank 8 on all linear layers; a learning rate at which random weights stay finite."""
        batch = self.options.batch
        return HyperParameters(r=8, lora_alpha=16, learning_rate=1e-6, batch_size=batch, epochs=epochs)

    def engine(self) -> TimedEngine:
        """With eight readings at most; how many, and their rows, are chosen as tune chooses them."""
        readings = plan_readings(self.facts, len(self.validation), READINGS)
        return TimedEngine(
            base=self.base,
            train=self.train,
            validation=self.validation,
            study_seed=0,
            cost=self.facts.cost,
            validation_subset_size=readings.rows,
            evaluations_per_trial=readings.count,
            max_tokens_per_micro_batch=self.options.micro_batch_tokens,
        )

    def search(self) -> dict[str, Any]:
        """A pack of the search."""
        return self._run(self.engine(), self.options.trials, None)

    def final(self) -> dict[str, Any]:
        """The final run, which never stops early here."""
        engine = self.engine()
        epochs = self.facts.wishes.epochs
        stopping = early_stopping(engine.train, engine.validation, epochs, patience=ALONE)
        return self._run(engine, 1, stopping)

    def _run(self, engine: TimedEngine, count: int, stopping: EarlyStopping | None) -> dict[str, Any]:
        waiting = [
            Trial(hyper_parameters=self.recipe(self.facts.wishes.epochs), seed=seed) for seed in range(count)
        ]
        with engine.attached() as step:  # compiles, where anything is compiled
            step(engine.slots(waiting))
        started = perf_counter()
        engine.run(
            lambda: waiting.pop() if waiting else None,
            slots=count,
            on_result=lambda result, adapter: None,
            early_stopping=stopping,
        )
        seconds = perf_counter() - started
        looked_at = len(engine.sample(stopping.rows if stopping else engine.validation_subset_size))
        evaluations = engine.evaluations_per_trial
        if stopping is not None:  # and the last, on all rows
            evaluations = stopping.evaluations + (looked_at < len(self.validation))
        return {
            "trials": count,
            "evaluations": evaluations,
            "subset_rows": looked_at,
            "seconds": round(seconds, 2),
            "evaluation_share": round(engine.clock.seconds / seconds, 3),
        }

    def alone(self) -> dict[str, Any]:
        """One trial and a PEFT loop, in turns."""
        recipe = self.recipe(ALONE)
        engine, ours, theirs = self.engine(), [], []
        (slot,) = engine.slots([Trial(hyper_parameters=recipe)])
        for _ in range(self.options.turns):
            with engine.attached() as step:
                step([slot])
                tokens, started = 0, perf_counter()
                while perf_counter() - started < self.options.seconds:
                    tokens += step([slot])
                ours.append(tokens / (perf_counter() - started))
            theirs.append(loop_rate(self.base, self.train, recipe, self.options.seconds))
            print(f"  ours {ours[-1]:,.0f}  PEFT {theirs[-1]:,.0f} tokens/s", flush=True)
        return {
            "trials": 1,
            "tokens_per_s": round(median(ours)),
            "peft_tokens_per_s": round(median(theirs)),
            "over_peft": round(median(a / b for a, b in zip(ours, theirs, strict=True)), 3),
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shape", default="smollm2-135m", help=f"one of {', '.join(SHAPES)}")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--what", default="alone,search,final")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--micro-batch-tokens", type=int, default=2048)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each turn")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bench = Bench(random_base(options.shape, getattr(torch, options.dtype), device), options)
    setting = {name: getattr(options, name) for name in ("shape", "dtype", "rows", "epochs", "batch")}
    for what in options.what.split(","):
        row = {"what": what, **setting, **getattr(bench, what)()}
        print(row, flush=True)
        append(options.results, circumstances() | row)


if __name__ == "__main__":
    main()
