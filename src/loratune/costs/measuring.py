"""The short measurement before a plan: how time and memory grow with the tokens of a step, on the user's rows.

Climbs from small steps to larger ones until throughput stops growing or memory ends; `costs.calibration` interprets
the numbers, which leave no trace in any trial.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import ceil
from statistics import median
from time import perf_counter

import numpy as np

from loratune.costs.budget import TooSlow
from loratune.costs.calibration import Calibration
from loratune.costs.ceiling import most_tokens
from loratune.costs.correction import Peak, fit_correction
from loratune.costs.execution import Device
from loratune.costs.limits import Limits
from loratune.costs.step_time import efficient_tokens
from loratune.costs.threads import fastest, is_shared, running
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
    """Most memory during the steps, on a GPU of tensors alone; None where the system does not say."""

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


InitialAdapters = dict[HyperParameters, Adapter]
"""Initial adapters of recipes, whatever their batch size: drawing one takes a second of an 8B model."""


def measure_step(
    engine: PackEngine, trials: Sequence[Trial], *, seconds: float, kept: InitialAdapters | None = None
) -> MeasuredStep:
    """Train a pack of `trials` for a warm-up step, and then for about `seconds`.

    `kept` keeps initial adapters for further measurements. Raises `ResourceError` where the pack does not fit in
    memory.
    """
    # attached once, as a pack is: adapters assigned anew at every step would cost more than the step
    with engine.attached() as step:
        adapters = _alike(engine, trials, {} if kept is None else kept)
        slots = [engine.slot(trial, adapter) for trial, adapter in zip(trials, adapters, strict=True)]
        counted = forget_peak(engine.base.device)

        def train() -> int:
            for i, slot in enumerate(slots):
                if slot.done:
                    slots[i] = engine.slot(slot.trial, slot.adapter)
            return step(slots)

        tokens, each, count = _repeat(train, seconds, _fewest(engine))
        for slot in slots:
            slot.release()
    peak = peak_of_step(engine.base.device) if counted else None
    largest = max(_largest(engine, trials, count + 1), step.largest_recorded)
    return MeasuredStep(tokens=tokens, seconds=each, largest=largest, peak_bytes=peak)


def _alike(engine: PackEngine, trials: Sequence[Trial], kept: InitialAdapters) -> list[Adapter]:
    """An adapter for each trial, those of one recipe alike."""
    found = []
    for trial in trials:
        recipe = trial.hyper_parameters
        kind = replace(recipe, batch_size=1)
        if kind not in kept:
            kept[kind] = engine.initial(trial)
        weights = kept[kind].weights.clone()
        found.append(replace(kept[kind], hyper_parameters=recipe, weights=weights))
    return found


def _largest(engine: PackEngine, trials: Sequence[Trial], steps: int) -> int:
    """Tokens of the largest micro-batch in the first steps of a pack."""
    largest = 0
    for batches in islice(zip(*(engine.batches(trial) for trial in trials), strict=False), steps):
        largest = max(largest, engine.largest_micro_batch(engine.train.lengths[np.concatenate(batches)]))
    return largest


def forward_rate(
    engine: PackEngine, trials: Sequence[Trial], *, seconds: float, kept: InitialAdapters | None = None
) -> float:
    """Tokens per second of evaluating the initial adapters of `trials` without gradients, all together."""
    rows = engine.validation.take(range(min(len(engine.validation), 32)))
    evaluated = int(rows.lengths.sum()) * len(trials)
    with engine.attached():
        adapters = _alike(engine, trials, {} if kept is None else kept)

        def evaluate() -> int:
            engine.read(adapters, rows)
            return evaluated

        tokens, each, _ = _repeat(evaluate, seconds, _fewest(engine))
    return tokens / each


def _fewest(engine: PackEngine) -> int:
    return 1 if engine.base.device.type == "cpu" else _FEWEST_ON_A_GPU


def _repeat(work: Callable[[], int], seconds: float, fewest: int = 1) -> tuple[float, float, int]:
    """Tokens and seconds of a call of `work`, the first left out, and how often it was repeated, at least `fewest`.

    Seconds by the median speed: a shape that is met for the first time compiles, and is met often later.
    """
    work()
    tokens: list[int] = []
    rates: list[float] = []
    begun = started = perf_counter()
    while len(tokens) < fewest or started - begun < seconds:
        tokens.append(work())
        ended = perf_counter()
        rates.append(tokens[-1] / (ended - started))
        started = ended
    mean = sum(tokens) / len(tokens)
    return mean, mean / median(rates), len(tokens)


PACK_SIZE: dict[Device, int] = {"cpu": 8, "cuda": 32}
"""Trials beyond which a pack gains little: on two cores a pack of 8 has reached the speed of the base's products."""
_SMALL, _OF_SMALL = 300e6, 64
"""Parameters below which a pack has 64 trials on a GPU: 135M trains short rows 12 % faster with 64 than with 32."""

SECONDS = 1.0
"""Length of each measurement on a CPU, after a warm-up."""
_SECONDS_ON_A_GPU = 0.3
"""A step takes 10 to 80 ms there."""
_FEWEST_ON_A_GPU = 7
"""Repetitions: up to three of them meet a size for the first time and record it, which takes ten times as long."""
_RUNGS: dict[Device, tuple[int, ...]] = {
    "cpu": (256, 512, 1024),
    "cuda": (2048, 8192, 32768, 65536),
}
"""Tokens of a step that are tried, and so of a micro-batch."""
_FEWEST_RUNGS = 2
_HOPE = 4.0
"""No pack on a CPU was ever faster than one trial's first step by more than this factor."""
_GAIN = 1.05
"""A rung that is not faster per token than the one before by this factor is the last."""


def calibrate(
    engine: PackEngine,
    limits: Limits,
    recipe: HyperParameters,
    *,
    pack_size: int | None = None,
    least_rate: float = 0.0,
    dora: bool = False,
) -> Calibration:
    """A few measured steps of a recipe: packs of growing steps, one trial alone, evaluation.

    On a CPU that others use too, first with how many threads.

    Args:
        pack_size: trials in a pack; None: `PACK_SIZE` of the device.
        least_rate: tokens per second; a first step on a CPU that is far below, or a GPU that cannot reach it by its
            products alone, raises `TooSlow`.
        dora: whether one DoRA trial is measured beside a plain one.
    """
    recipe = replace(recipe, r=min(recipe.r, engine.base.profile.largest_rank))
    small = limits.execution.device == "cuda" and limits.model.parameters < _SMALL
    slots = pack_size or (_OF_SMALL if small else PACK_SIZE[limits.execution.device])
    slots, allowed = _share_memory(limits, recipe, slots)
    kept: InitialAdapters = {}
    _check_first_step(engine, limits, recipe, least_rate, kept)
    threads = 0
    if limits.execution.device == "cpu" and is_shared():
        trials = _filling(engine, recipe, slots, min(allowed, _RUNGS["cpu"][0]))
        threads = fastest(lambda: measure_step(engine, trials, seconds=SECONDS, kept=kept).rate)
    with running(threads):
        found = _measured(engine, limits, recipe, slots, allowed, kept)
        factor = _dora_factor(engine, recipe, found, kept) if dora else 0.0
    return replace(found, threads=threads, dora=factor)


def _measured(
    engine: PackEngine,
    limits: Limits,
    recipe: HyperParameters,
    slots: int,
    allowed: int,
    kept: InitialAdapters,
) -> Calibration:
    steps, peaks = _measured_rungs(engine, limits, recipe, slots, allowed, kept)
    points = [(step.tokens, step.seconds) for step in steps.values()]
    best = efficient_tokens(points, allowed=max(tokens for tokens, _ in points))
    rung = next(rung for rung, step in steps.items() if step.tokens == best)
    lonely = _lonely(engine, recipe)
    initial = [Trial(hyper_parameters=lonely, seed=seed) for seed in range(min(slots, PACK_SIZE["cpu"]))]
    seconds = _seconds(engine)
    alone = measure_step(engine, initial[:1], seconds=seconds, kept=kept)
    if alone.tokens < min(tokens for tokens, _ in points):  # where launching is most of a step
        points.insert(0, (alone.tokens, alone.seconds))
    return Calibration(
        pack=steps[rung].rate,
        alone=alone.rate,
        forward=forward_rate(engine, initial, seconds=seconds, kept=kept),
        slots=slots,
        steps=tuple(points),
        micro_batch_tokens=max(min(rung, engine.micro_batch_tokens), limits.max_length),
        correction=fit_correction(peaks),
    )


def _dora_factor(
    engine: PackEngine, recipe: HyperParameters, found: Calibration, kept: InitialAdapters
) -> float:
    """How many times as long a DoRA trial's steps take as a plain one's, each alone; never below 1.

    Alone, so that it has the batch that trials have: a part of the work is done once a step, whatever its rows.
    """
    trial = Trial(hyper_parameters=replace(_lonely(engine, recipe), use_dora=True, lora_dropout=0.0))
    step = measure_step(engine, [trial], seconds=_seconds(engine), kept=kept)
    return max(1.0, found.alone / step.rate)


def _lonely(engine: PackEngine, recipe: HyperParameters) -> HyperParameters:
    """The recipe where its batch is more than all rows."""
    return replace(recipe, batch_size=min(recipe.batch_size, engine.train.examples))


def _seconds(engine: PackEngine) -> float:
    return SECONDS if engine.base.device.type == "cpu" else _SECONDS_ON_A_GPU


def _check_first_step(
    engine: PackEngine, limits: Limits, recipe: HyperParameters, least_rate: float, kept: InitialAdapters
) -> None:
    """A step of one trial. On a GPU its kernels are compiled, so its time says nothing; the device's products do."""
    if not least_rate:
        return
    if limits.execution.device == "cuda":
        most = most_tokens(engine.base.profile, engine.base.device, engine.base.dtype)
        if most < least_rate:
            raise TooSlow(most, ceiling=True)
        return
    lonely = _lonely(engine, recipe)
    first = measure_step(engine, [Trial(hyper_parameters=lonely)], seconds=0.0, kept=kept)
    if first.rate * _HOPE < least_rate:
        raise TooSlow(first.rate)


def _share_memory(limits: Limits, recipe: HyperParameters, slots: int) -> tuple[int, int]:
    """Slots, and tokens of a micro-batch beside them: fewer slots where all leave no room for the smallest rung."""
    smallest = max(limits.max_length, _RUNGS[limits.execution.device][0])
    while True:
        fastest = limits.fastest_micro_batch([recipe] * slots, limits.micro_batch_tokens)
        allowed = min(fastest, limits.micro_batch_tokens)
        if allowed >= smallest or slots == 1:
            return slots, max(allowed, limits.max_length)
        slots = max(1, slots // 2)


def _measured_rungs(
    engine: PackEngine,
    limits: Limits,
    recipe: HyperParameters,
    slots: int,
    allowed: int,
    kept: InitialAdapters,
) -> tuple[dict[int, MeasuredStep], list[Peak]]:
    """Steps by rung, ascending, and the peaks of memory where they can be measured."""
    rungs = _rungs(engine, limits, recipe, slots, allowed)
    most = rungs[-1]
    if limits.execution.device == "cuda" and len(rungs) > _FEWEST_RUNGS:
        most = min(most, ceil(_full(engine, recipe, slots)))  # memory beyond it no pack takes
    steps: dict[int, MeasuredStep] = {}
    peaks: list[Peak] = []
    for rung in rungs:
        trials = _filling(engine, recipe, slots, rung if rung < rungs[-1] else most)
        room = engine.micro_batch_tokens
        engine.forget_recorded()  # or a card with room for this step would have none beside those recorded before
        step = measure_step(engine, trials, seconds=_seconds(engine), kept=kept)
        if steps and engine.micro_batch_tokens < room:
            break  # memory ran out
        gain = step.rate / max(each.rate for each in steps.values()) if steps else 2.0
        if steps and step.tokens <= max(each.tokens for each in steps.values()):
            break  # the rows are too few for a larger step
        steps[rung] = step
        if step.peak_bytes is not None:
            peaks.append(_peak(limits, trials, step, step.peak_bytes))
        if gain < _GAIN and len(steps) >= _FEWEST_RUNGS:
            break
    if limits.execution.device == "cuda":
        _again(engine, recipe, slots, kept, steps)
    return steps, peaks


def _rungs(
    engine: PackEngine, limits: Limits, recipe: HyperParameters, slots: int, allowed: int
) -> list[int]:
    """Tokens of a step that are tried, ascending: up to the first that holds a full pack of the recipe, so that no
    memory is taken that a search does not need either.
    """
    every = [rung for rung in _RUNGS[limits.execution.device] if rung <= allowed] or [allowed]
    if limits.execution.device == "cpu":
        return every
    full = _full(engine, recipe, slots)
    enough = next((place for place, rung in enumerate(every) if rung >= full), len(every))
    return every[: max(enough + 1, _FEWEST_RUNGS)]


def _full(engine: PackEngine, recipe: HyperParameters, slots: int) -> float:
    """Tokens of a step of a full pack, on average."""
    return slots * min(recipe.batch_size, engine.train.examples) * float(engine.train.example_lengths.mean())


def _again(
    engine: PackEngine,
    recipe: HyperParameters,
    slots: int,
    kept: InitialAdapters,
    steps: dict[int, MeasuredStep],
) -> None:
    """The first rung once more where kernels compile at first use: all its forms have been met only now."""
    rung, first = next(iter(steps.items()))
    step = measure_step(engine, _filling(engine, recipe, slots, rung), seconds=_seconds(engine), kept=kept)
    if step.rate > first.rate:
        steps[rung] = replace(first, tokens=step.tokens, seconds=step.seconds)


def _filling(engine: PackEngine, recipe: HyperParameters, slots: int, tokens: int) -> list[Trial]:
    """Trials whose step has about `tokens` tokens: one for each slot, if a row each is not too much."""
    mean = float(engine.train.example_lengths.mean())
    count = max(1, min(slots, int(tokens / mean)))
    batch = max(1, min(engine.train.examples, int(tokens / mean / count)))
    filled = replace(recipe, batch_size=batch)
    return [Trial(hyper_parameters=filled, seed=seed) for seed in range(count)]


def _peak(limits: Limits, trials: list[Trial], step: MeasuredStep, measured: int) -> Peak:
    """What was predicted for the measured step beside what was measured."""
    pack = [trial.hyper_parameters for trial in trials]
    seen = replace(limits, micro_batch_tokens=step.largest, max_length=min(limits.max_length, step.largest))
    estimate = seen.estimate(pack, step_tokens=step.largest)
    return estimate.peak(measured if limits.execution.device == "cpu" else estimate.held(measured))
