"""A finished trial of invented numbers, and whether two are the same."""

from collections.abc import Iterator
from dataclasses import fields
from json import JSONDecodeError, loads
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from loratune.study.events import FILE
from loratune.study.record import Study
from loratune.values import CurvePoint, HyperParameters, Trial, TrialResult


def make_result(rank: int = 8, seed: int = 0, **changes: object) -> TrialResult:
    values = HyperParameters(
        r=rank,
        lora_alpha=2 * rank,
        learning_rate=1e-3 / 3,
        batch_size=16,
        target_modules=("q_proj", "v_proj"),
    )
    trial = Trial(hyper_parameters=values, seed=seed, fraction=0.25)
    facts: dict[str, object] = {
        "asked": trial,
        "trial": trial,
        "nll": 1 / 3,
        "train_nll": 0.3,
        "metrics": {"nll": 1 / 3, "accuracy": 0.8},
        "curve": tuple(
            CurvePoint(step=step, fraction=step / 20, train_nll=1 / step, validation_nll=1.1 / step)
            for step in (10, 20)
        ),
        "example_nll": np.random.default_rng(seed).random(50),
        "example_scores": {"exact_match": np.arange(50.0) % 2, "prediction": np.arange(50) % 3},
        "trained_tokens": 12345,
        "steps": 20,
        "cost": 0.26,
        "seconds": 1.5,
    }
    return TrialResult(**(facts | changes))  # type: ignore[arg-type]


def assert_equal(found: TrialResult, expected: TrialResult) -> None:
    for field in fields(TrialResult):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        if field.name == "example_scores":
            assert ours.keys() == theirs.keys()
            for name in ours:
                np.testing.assert_array_equal(ours[name], theirs[name], strict=True)
        elif field.name == "example_nll" and theirs is not None:
            np.testing.assert_array_equal(ours, theirs, strict=True)
        else:
            assert ours == theirs, field.name


def read_events(directory: Path) -> Iterator[dict[str, Any]]:
    """The events of a run directory in their order; what a kill left of a line is passed over."""
    path = directory / FILE
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                yield loads(line)
            except JSONDecodeError:
                continue


def write_until_killed(directory: Path, said: Connection) -> None:
    """Record trials, and say which, in a process of its own; -1: it begins."""
    study = Study.open(directory, fingerprint={}, resume=True)
    done = {result.asked.key for result in study.results()}
    said.send(-1)
    for seed in range(10_000):
        result = make_result(seed=seed)
        if result.asked.key not in done:
            study.record(result)
            said.send(seed)
