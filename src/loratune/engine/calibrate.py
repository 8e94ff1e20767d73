"""How fast this machine trains this model: a few measured steps of a pack, of one trial alone, of evaluation.

Knows the engine; the numbers leave no trace in any trial.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

from loratune.engine.pack import PackEngine
from loratune.values import Trial


@dataclass(frozen=True, kw_only=True, slots=True)
class Throughput:
    """Real (unpadded) tokens per second."""

    pack: float
    """Trained by all slots of a pack together."""
    alone: float
    """Trained by one trial alone."""
    forward: float
    """Evaluated without gradients, all models together."""


def measure(
    engine: PackEngine, trials: Sequence[Trial], alone: Trial, *, seconds: float = 10.0
) -> Throughput:
    """Train `trials` as a pack and another one alone, evaluate the initial adapters, and time it.

    Each of the three gets a warm-up and then about `seconds`. Raises `ResourceError` where the pack does
    not fit in memory.
    """
    adapters = [engine.initial(trial) for trial in trials]
    rows = engine.validation.take(range(min(len(engine.validation), 32)))
    evaluated = int(rows.lengths.sum()) * len(adapters)

    def evaluate() -> int:
        engine.evaluate(adapters, rows)
        return evaluated

    return Throughput(
        pack=_rate(_training(engine, trials), seconds),
        alone=_rate(_training(engine, [alone]), seconds),
        forward=_rate(evaluate, seconds),
    )


def _training(engine: PackEngine, trials: Sequence[Trial]) -> Callable[[], int]:
    """A function that takes one step of a pack of `trials`; ended trials start again."""
    slots = [engine.slot(trial) for trial in trials]

    def train() -> int:
        for i, slot in enumerate(slots):
            if slot.done:
                slots[i] = engine.slot(slot.trial)
        with engine.attached() as step:
            return step(slots)

    return train


def _rate(work: Callable[[], int], seconds: float) -> float:
    """Tokens per second of repeated `work`, the first call left out."""
    work()
    tokens = 0
    started = perf_counter()
    while (elapsed := perf_counter() - started) < seconds:
        tokens += work()
    return tokens / elapsed
