"""A minute or two on the base model before any search: its NLL, gradient noise, absorbed bits, a learning-rate test.

Knows the engine through its public functions, and rows; what the figures mean is decided elsewhere.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite, log
from time import monotonic

import numpy as np
import numpy.typing as npt
import torch

from loratune.data.batches import TrialBatches
from loratune.engine.pack import PackEngine
from loratune.engine.slot import MAX_GRADIENT_NORM, Slot, optimiser
from loratune.lora.layout import Adapter
from loratune.maths.curves import best_rate
from loratune.maths.laws import learning_rate_law
from loratune.maths.noise_scale import noise_scale, ratio_interval
from loratune.values import (
    Absorbed,
    BaseLoss,
    HyperParameters,
    NoiseScale,
    Probe,
    RateTest,
    Trial,
    TrialResult,
)

Rows = npt.NDArray[np.int64]

SMALL_ROWS, LANES = 2, 8
"""Rows of the small batches, and how many of them make the large one."""
RATE_STEP = 3.0
_ARMS = 5
_WARMUP = 5
"""Optimiser steps with a rising learning rate; their gradients are not used (at first only B has any)."""
_FEWEST_STEPS, _MOST_STEPS = 8, 40
_FEWEST_NORMS = 4
_FEWEST_ALONE = 16
"""Fewer steps give a search no noise scale: eleven are left after the warm-up."""
_ARM_BATCH = 8
_SHORTEST_RUN, _LONGEST_RUN = 10, 100
"""Optimiser steps of an arm of the rate test."""
_PIECE = 16
_READ_ROWS = 64
"""Validation rows on which the arms are compared."""
_NOISE_SHARE = 0.4


def base_loss(engine: PackEngine, *, seconds: float, most_rows: int = 256, seed: int = 0) -> BaseLoss:
    """The base model's NLL on randomly drawn training rows, at least 16 and more if the time allows.

    Raises `ResourceError` where memory does not suffice.
    """
    table = engine.train
    order = np.random.default_rng([seed, 1]).permutation(len(table))[:most_rows]
    sums: list[npt.NDArray[np.float64]] = []
    started = monotonic()
    for start in range(0, len(order), _PIECE):
        if start and monotonic() - started > seconds:
            break
        (found,) = engine.evaluate([None], table.take(order[start : start + _PIECE]))
        sums.append(found.example_nll)
    losses = np.concatenate(sums)
    counts = table.supervised_counts[order[: len(losses)]].astype(np.float64)
    value, low, high = ratio_interval(losses, counts)
    return BaseLoss(
        nll=value,
        low=max(low, 0.0),
        high=high,
        rows=len(losses),
        supervised_tokens=int(counts.sum()),
        total=value * float(table.supervised_counts.sum()),
    )


def guessing_loss(vocabulary: int) -> float:
    """ln V: what a model that knows nothing has, nats per token."""
    return log(vocabulary)


def probe(engine: PackEngine, *, r: int, lora_alpha: float, seconds: float, seed: int = 0) -> Probe:
    """Measure on `engine`'s rows at one rank and alpha, around the learning rates that the law has for them.

    A part for which the rows or the time do not suffice is None. Raises `ResourceError` where memory does
    not suffice.
    """
    started = monotonic()
    walk = _accumulate(engine, r, lora_alpha, steps=_MOST_STEPS, seconds=_NOISE_SHARE * seconds, seed=seed)
    noise = _noise(walk.norms, seed) if walk is not None else None
    absorbed = _absorbed(engine, walk.lanes) if walk is not None and noise is not None else None
    left = seconds - (monotonic() - started)
    speed = walk.tokens_per_second if walk is not None else 0.0
    test = _rate_test(engine, r, lora_alpha, speed, seconds=left, seed=seed)
    return Probe(noise=noise, absorbed=absorbed, rate=test, seconds=round(monotonic() - started, 1))


class _SmallBatch(Slot):
    """A small batch of a larger one: it keeps its gradient and leaves the step to the caller, who sums the lanes."""

    moves = False

    def __init__(self, trial: Trial, adapter: Adapter, batches: TrialBatches, *, vocabulary: int) -> None:
        super().__init__(trial, adapter, batches, vocabulary=vocabulary)
        self.read: list[Rows] = []
        """Rows of each step so far."""

    def record(self, loss: float, gradient_norm: float, tokens: int) -> None:
        """Count the step just taken, and note its rows."""
        self.read.append(self.next_rows())
        super().record(loss, gradient_norm, tokens)


def gradient_noise(
    engine: PackEngine, *, r: int, lora_alpha: float, share: float, epochs: float, seed: int = 0
) -> NoiseScale | None:
    """The gradient noise scale alone, for at most `share` of the rows of a run of `epochs`; None where that is too few.

    The number of steps depends on these rows and no clock: it is the same every time. Raises `ResourceError`
    where memory does not suffice.
    """
    steps = min(int(share * epochs * len(engine.train)), len(engine.train)) // (LANES * SMALL_ROWS)
    if steps < _FEWEST_ALONE:
        return None
    path = _accumulate(engine, r, lora_alpha, steps=min(steps, _MOST_STEPS), seconds=inf, seed=seed)
    return _noise(path.norms, seed) if path is not None else None


@dataclass(frozen=True, kw_only=True, slots=True)
class _AccumulatedSteps:
    """Some accumulated steps of one adapter."""

    lanes: Sequence[_SmallBatch]
    norms: Sequence[tuple[float, float]]
    """Both norms of each step as `_descend` gives them, up to the first that was not finite."""
    tokens_per_second: float


def _accumulate(
    engine: PackEngine, r: int, lora_alpha: float, *, steps: int, seconds: float, seed: int
) -> _AccumulatedSteps | None:
    """Train one adapter by accumulated gradients, reading the norms of the parts and of the whole; None without rows.

    All lanes of a step are at the same weights, each with rows of its own. At least `_FEWEST_STEPS`, at most `steps`.
    """
    order = np.random.default_rng([seed, 2]).permutation(len(engine.train))
    batch = LANES * SMALL_ROWS
    steps = min(len(order) // batch, steps)
    if steps < _FEWEST_STEPS:
        return None
    values = _law_values(engine, r, lora_alpha, batch_size=batch, rows=steps * batch)
    lanes = _lanes(engine, values, order[: steps * batch].reshape(LANES, -1), seed)
    started = monotonic()
    norms: list[tuple[float, float]] = []
    for pair in _descend(engine, lanes, values, steps):
        norms.append(pair)
        if monotonic() - started > seconds and len(norms) >= _FEWEST_STEPS:
            break
    speed = sum(lane.trained_tokens for lane in lanes) / max(monotonic() - started, 1e-9)
    return _AccumulatedSteps(lanes=lanes, norms=norms, tokens_per_second=speed)


def _noise(norms: Sequence[tuple[float, float]], seed: int) -> NoiseScale | None:
    """The noise scale from the steps after the warm-up; None where too few were finite."""
    if len(norms) < _FEWEST_STEPS:
        return None
    small, large = zip(*norms[min(_WARMUP, len(norms) - _FEWEST_NORMS) :], strict=True)
    return noise_scale(small, large, small_rows=SMALL_ROWS, large_rows=SMALL_ROWS * LANES, seed=seed)


def _lanes(engine: PackEngine, values: HyperParameters, rows: Rows, seed: int) -> list[_SmallBatch]:
    """One lane per line of `rows` [lanes, rows], all on one adapter."""
    trial = Trial(hyper_parameters=replace(values, batch_size=SMALL_ROWS, lora_dropout=0.0), seed=seed)
    adapter = engine.initial(trial)
    vocabulary = engine.base.profile.vocabulary
    return [
        _SmallBatch(
            trial,
            adapter,
            TrialBatches(rows=own, batch_size=SMALL_ROWS, epochs=1, seed=seed),
            vocabulary=vocabulary,
        )
        for own in rows
    ]


def _descend(
    engine: PackEngine, lanes: Sequence[_SmallBatch], values: HyperParameters, steps: int
) -> Iterator[tuple[float, float]]:
    """(mean squared norm of the lanes' gradients, squared norm of their mean) of each step, while finite."""
    weights = lanes[0].adapter.weights
    descent = optimiser(weights, values)
    with engine.attached() as step:
        for number in range(steps):
            step(lanes)
            mean = torch.zeros_like(weights)
            squares = 0.0
            for lane in lanes:
                mean.add_(lane.gradient, alpha=1 / len(lanes))
                squares += float(lane.gradient.square().sum()) / len(lanes)
                lane.gradient.zero_()
            whole = float(mean.square().sum())
            if not (isfinite(whole) and isfinite(squares)):
                return
            yield squares, whole
            descent.param_groups[0]["lr"] = values.learning_rate * min(1.0, (number + 1) / _WARMUP)
            weights.grad = mean.mul_(min(1.0, MAX_GRADIENT_NORM / (whole**0.5 + 1e-6)))
            descent.step()


def _absorbed(engine: PackEngine, lanes: Sequence[_SmallBatch]) -> Absorbed:
    """What the base loses on the rows that the lanes read, minus what the lanes lost when they read them."""
    table = engine.train
    rows = np.concatenate([batch for lane in lanes for batch in lane.read])
    online = sum(
        loss * float(table.supervised_counts[batch].sum())
        for lane in lanes
        for loss, batch in zip(lane.losses, lane.read, strict=True)
    )
    (base,) = engine.evaluate([None], table.take(rows))
    return Absorbed(
        bits=float(base.example_nll.sum() - online) / log(2),
        rows=len(rows),
        supervised_tokens=base.supervised_tokens,
    )


def _rate_test(
    engine: PackEngine, r: int, lora_alpha: float, tokens_per_second: float, *, seconds: float, seed: int
) -> RateTest | None:
    """Short runs in one pack, a factor 3 apart around the law's rate, annealed to zero, read on validation rows.

    A ramp within one run would mix the rates; a pack keeps them apart for the same cost. While the best lies
    at an edge and time is left, one more is run beyond it.
    """
    started = monotonic()
    rows = _rows_of_run(engine, tokens_per_second, seconds)
    if rows is None:
        return None
    values = _law_values(engine, r, lora_alpha, batch_size=_ARM_BATCH, rows=rows)
    short = _short_engine(engine, rows, seed)
    losses: dict[float, float] = {}
    waiting = [values.learning_rate * RATE_STEP**power for power in range(-(_ARMS // 2), _ARMS // 2 + 1)]
    while waiting:
        begun = monotonic()
        losses |= _run_arms(short, values, waiting, seed)
        if 2 * monotonic() - begun - started > seconds:
            break
        waiting = _beyond_edge(losses)
    tried = sorted(losses)
    if not any(isfinite(losses[rate]) for rate in tried):
        return None
    best, _, inside = best_rate(tried, [losses[rate] for rate in tried])
    return RateTest(
        r=r,
        lora_alpha=lora_alpha,
        batch_size=_ARM_BATCH,
        rows=rows,
        tried=tuple((rate, losses[rate]) for rate in tried),
        best=best,
        inside=inside,
    )


def _law_values(
    engine: PackEngine, r: int, lora_alpha: float, *, batch_size: int, rows: int
) -> HyperParameters:
    """Rank and alpha at the law's learning rate for one pass over `rows` rows."""
    profile = engine.base.profile
    law = learning_rate_law(
        r=r,
        lora_alpha=lora_alpha,
        batch_size=batch_size,
        rows=rows,
        epochs=1,
        hidden_size=profile.hidden_size,
        family=profile.family,
    )
    return HyperParameters(r=r, lora_alpha=lora_alpha, learning_rate=law.value, batch_size=batch_size)


def _rows_of_run(engine: PackEngine, tokens_per_second: float, seconds: float) -> int | None:
    """What all arms can be trained on in the time, at least 10 steps; None where the data is smaller."""
    if len(engine.train) < _SHORTEST_RUN * _ARM_BATCH:
        return None
    affordable = seconds * tokens_per_second / float(engine.train.lengths.mean()) / _ARMS - _READ_ROWS / 2
    steps = min(int(affordable / _ARM_BATCH), _LONGEST_RUN, len(engine.train) // _ARM_BATCH)
    return max(steps, _SHORTEST_RUN) * _ARM_BATCH


def _short_engine(engine: PackEngine, rows: int, seed: int) -> PackEngine:
    """The same model on a random part of the rows."""
    random = np.random.default_rng([seed, 3])
    read = random.permutation(len(engine.validation))[:_READ_ROWS]
    return replace(
        engine,
        train=engine.train.take(random.permutation(len(engine.train))[:rows]),
        validation=engine.validation.take(np.sort(read)),
        label_tokens=None,
        evaluations_per_trial=1,
    )


def _run_arms(
    engine: PackEngine, values: HyperParameters, rates: Sequence[float], seed: int
) -> dict[float, float]:
    """NLL by learning rate after each short run; infinite where it diverged."""
    trials = iter([Trial(hyper_parameters=replace(values, learning_rate=rate), seed=seed) for rate in rates])
    losses: dict[float, float] = {}

    def keep(result: TrialResult, _: Adapter) -> None:
        losses[result.trial.hyper_parameters.learning_rate] = result.nll if result.finished else inf

    engine.run(lambda: next(trials, None), slots=len(rates), on_result=keep)
    return losses


def _beyond_edge(losses: dict[float, float]) -> list[float]:
    """The rate beyond the best one where that is at an edge; below all where all diverged."""
    tried = sorted(losses)
    best = min(tried, key=lambda rate: losses[rate])
    if best == tried[0]:
        return [best / RATE_STEP]
    return [best * RATE_STEP] if best == tried[-1] else []
