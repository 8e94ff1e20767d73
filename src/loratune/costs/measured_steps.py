"""How fast this machine trains this model, and what that takes in memory: a few measured steps.

Knows the engine; the numbers leave no trace in any trial.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from statistics import median
from time import perf_counter

import numpy as np

from loratune.engine.pack import PackEngine
from loratune.lora.layout import Adapter
from loratune.model.device import forget_peak, peak_of_step
from loratune.values import HyperParameters, Trial


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredStep:
    """A step of a pack, on average."""

    tokens: float
    """Real (unpadded) ones."""
    seconds: float
    largest: int
    """Tokens, padding included, of the largest of its micro-batches."""
    peak_bytes: int | None
    """Most memory during the steps, on a GPU of tensors alone; None where the system cannot tell."""

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


Drawn = dict[HyperParameters, Adapter]
"""Initial adapters of recipes, whatever their batch size: drawing one takes a second of an 8B model."""


def measure_step(
    engine: PackEngine, trials: Sequence[Trial], *, seconds: float, drawn: Drawn | None = None
) -> MeasuredStep:
    """Train a pack of `trials` for a warm-up step, and then for about `seconds`.

    `drawn` keeps what was drawn, for further measurements. Raises `ResourceError` where the pack does not fit in
    memory.
    """
    # attached once, as a pack is: adapters assigned anew at every step would cost more than the step
    with engine.attached() as step:
        adapters = _alike(engine, trials, {} if drawn is None else drawn)
        slots = [engine.slot(trial, adapter) for trial, adapter in zip(trials, adapters, strict=True)]
        told = forget_peak(engine.base.device)

        def train() -> int:
            for i, slot in enumerate(slots):
                if slot.done:
                    slots[i] = engine.slot(slot.trial, slot.adapter)
            return step(slots)

        tokens, each, count = _repeat(train, seconds)
    peak = peak_of_step(engine.base.device) if told else None
    return MeasuredStep(
        tokens=tokens, seconds=each, largest=_largest(engine, trials, count + 1), peak_bytes=peak
    )


def _alike(engine: PackEngine, trials: Sequence[Trial], drawn: Drawn) -> list[Adapter]:
    """An adapter for each trial, those of one recipe alike."""
    found = []
    for trial in trials:
        recipe = trial.hyper_parameters
        kind = replace(recipe, batch_size=1)
        if kind not in drawn:
            drawn[kind] = engine.initial(trial)
        weights = drawn[kind].weights.clone()
        found.append(replace(drawn[kind], hyper_parameters=recipe, weights=weights))
    return found


def _largest(engine: PackEngine, trials: Sequence[Trial], steps: int) -> int:
    """Tokens of the largest micro-batch in the first steps of a pack."""
    largest = 0
    for batches in islice(zip(*(engine.batches(trial) for trial in trials), strict=False), steps):
        largest = max(largest, engine.largest_micro_batch(engine.train.lengths[np.concatenate(batches)]))
    return largest


def forward_rate(
    engine: PackEngine, trials: Sequence[Trial], *, seconds: float, drawn: Drawn | None = None
) -> float:
    """Tokens per second of evaluating the initial adapters of `trials` without gradients, all together."""
    rows = engine.validation.take(range(min(len(engine.validation), 32)))
    evaluated = int(rows.lengths.sum()) * len(trials)
    with engine.attached():
        adapters = _alike(engine, trials, {} if drawn is None else drawn)

        def evaluate() -> int:
            engine.read(adapters, rows)
            return evaluated

        tokens, each, _ = _repeat(evaluate, seconds)
    return tokens / each


def _repeat(work: Callable[[], int], seconds: float) -> tuple[float, float, int]:
    """Tokens and seconds of a call of `work`, the first left out, and how often it was repeated.

    Seconds by the median speed: a shape that is met for the first time compiles, and is met often later.
    """
    work()
    tokens: list[int] = []
    rates: list[float] = []
    begun = started = perf_counter()
    while not tokens or started - begun < seconds:
        tokens.append(work())
        ended = perf_counter()
        rates.append(tokens[-1] / (ended - started))
        started = ended
    mean = sum(tokens) / len(tokens)
    return mean, mean / median(rates), len(tokens)
