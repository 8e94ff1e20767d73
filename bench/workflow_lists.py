"""Records which trials a strategy asks for on banking77, and what its answer is worth there: bench/workflow/*.json.

The strategy's own code runs; what each trial came to is looked up among the runs of SmolLM2-135M on banking77's real
labels (`--table`). Of every trial is kept which trials had ended when it was asked for, so that bench/workflow.py
can train the list without the strategy. Where the table lacks a setting its nearest stands for it: it has alpha = 2r
only, all linear layers only, and batch sizes other than 16 at rank 8 only; what they did there is added everywhere.
Trains nothing.

python bench/workflow_lists.py --table ../shared/data/grid_banking77.csv
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loratune.search.make import make_strategy
from loratune.search.strategy import Strategy
from loratune.values import (
    DataFacts,
    HyperParameters,
    ModelFacts,
    RunLimits,
    SearchContext,
    Trial,
    TrialResult,
    Wishes,
)
from loratune.values.plain import to_plain
from play import cell_means, score
from rows import drawn_rows
from shapes import random_base
from simulated import TableRunner, read_tasks

ROWS, VALIDATION_ROWS, TEST_ROWS = 5000, 750, 750
EPOCHS = 3.0
MEASURED_BATCH = 16
"""At which the table has every rank."""
FEWER_ROWS = 448
"""Validation rows behind the table's other batch sizes."""
LISTS = Path(__file__).parent / "workflow"


def context_of(runner: TableRunner, **wishes: Any) -> SearchContext:
    """What tune would tell the strategy about 5,000 rows of banking77 and SmolLM2-135M, budget and wishes given."""
    train, validation = (drawn_rows("banking77", 49152, rows, seed=rows) for rows in (ROWS, VALIDATION_ROWS))
    profile = random_base("smollm2-135m", torch.float32, "meta").profile
    table = runner.context()
    facts = SearchContext(
        data=DataFacts(
            rows=ROWS,
            tokens=int(train.lengths.sum()),
            supervised_tokens=int(train.supervised_counts.sum()),
            validation_tokens=int(validation.lengths.sum()),
            validation_weights=table.data.validation_weights,
            labels=77,
        ),
        model=ModelFacts(
            hidden_size=profile.hidden_size,
            family=profile.family,
            parameters_per_rank=sum(i + o for _, i, o in profile.targets),
            largest_rank=table.model.largest_rank,
        ),
        limits=RunLimits(smallest_fraction=table.limits.smallest_fraction, seeds=table.limits.seeds),
        wishes=Wishes(epochs=EPOCHS),
    )
    return facts.changed(**wishes)


def batch_effect(runner: TableRunner, setting: HyperParameters) -> float:
    """What the batch size adds to the NLL of batch 16, nats: as at rank 8 and the nearest learning rate there.

    The table's other batch sizes were validated on fewer rows, the first of those of batch 16.
    """
    if runner.snap(setting) is None or setting.batch_size == MEASURED_BATCH:
        return 0.0
    cell = runner.snap(replace(setting, r=8))
    assert cell is not None
    if cell.batch_size == MEASURED_BATCH:
        return 0.0
    usual = [
        nll[:FEWER_ROWS].mean()
        for (rank, rate, batch, _), nll in runner.examples.items()
        if (rank, rate, batch) == (8, cell.learning_rate, MEASURED_BATCH)
    ]
    measured = cell_means(runner)[cell.rank, cell.learning_rate, cell.batch_size, cell.lora_alpha]
    return measured - float(np.mean(usual))


@dataclass(kw_only=True)
class Recorder:
    """Runs a strategy against the table as tune would, all trials side by side, one pack step at a time."""

    strategy: Strategy
    runner: TableRunner
    asked: list[Trial] = field(default_factory=list)
    after: list[list[int]] = field(default_factory=list)
    """For each asked trial the numbers of those that had ended."""
    results: dict[int, TrialResult] = field(default_factory=dict)

    def play(self) -> None:
        """To the strategy's end."""
        left: dict[int, float] = {}
        while True:
            running = [self.asked[i] for i in left]
            for trial in self.strategy.ask(list(self.results.values()), running):
                left[len(self.asked)] = trial.fraction / trial.hyper_parameters.batch_size
                self.after.append(sorted(self.results))
                self.asked.append(trial)
            if not left:
                return
            shortest = min(left.values())
            left = {i: steps - shortest for i, steps in left.items()}
            for i in [i for i, steps in left.items() if steps < 1e-12]:
                del left[i]
                self.results[i] = self._result(self.asked[i])

    def _result(self, trial: Trial) -> TrialResult:
        """As measured; what it costs is what was asked for, even where two settings share a cell."""
        (result,) = self.runner.run([trial], self.strategy.context)
        nll = result.nll + batch_effect(self.runner, trial.hyper_parameters)
        return replace(result, nll=nll, metrics={"nll": nll}, cost=self.strategy.context.cost(trial))

    @property
    def chosen(self) -> HyperParameters:
        return self.strategy.decide(list(self.results.values())).hyper_parameters


def quality(recorder: Recorder) -> dict[str, Any]:
    """What was measured for the answer, and what was paid for it."""
    runner, chosen = recorder.runner, recorder.chosen
    cost = sum(result.cost for result in recorder.results.values())
    found = score(runner, chosen, cost, recorder.strategy.context.wishes.margin)
    rank, rate, batch, alpha = found.chosen
    return {
        "cell": {"r": rank, "learning_rate": rate, "batch_size": batch, "lora_alpha": alpha},
        "nll": round(cell_means(runner)[found.chosen], 4),
        "batch_effect": round(batch_effect(runner, chosen), 4),
        "full_runs": round(cost, 2),
    }


def document(recorder: Recorder) -> dict[str, Any]:
    """The list as JSON."""
    return {
        "strategy": recorder.strategy.name,
        "rows": ROWS,
        "validation_rows": VALIDATION_ROWS,
        "test_rows": TEST_ROWS,
        "epochs": EPOCHS,
        "trials": [
            to_plain(trial) | {"after": after}
            for trial, after in zip(recorder.asked, recorder.after, strict=True)
        ],
        "chosen": recorder.chosen.to_dict(),
        "smollm2": quality(recorder),
    }


def recorded(strategy: str, table: Path, **wishes: Any) -> Recorder:
    """A strategy played to its end."""
    runner = TableRunner(read_tasks(table)["banking77"])
    recorder = Recorder(strategy=make_strategy(strategy, context_of(runner, **wishes)), runner=runner)
    recorder.play()
    return recorder


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the lists and print what the answers are worth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=LISTS)
    options = parser.parse_args(arguments)
    guide = recorded(
        "guide", options.table, learning_rates=(1e-4, 5e-4, 1e-3), batch_sizes=(8, 16, 32), budget=14.2
    )
    evidence = recorded("evidence", options.table)
    options.out.mkdir(exist_ok=True)
    for recorder in (guide, evidence):
        found = document(recorder)
        name = recorder.strategy.name
        (options.out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(name, len(found["trials"]), "trials", found["smollm2"])


if __name__ == "__main__":
    main()
