"""The short measurement before a plan: how time and memory grow with the tokens of a step, on the user's rows.

Climbs from small steps to larger ones until throughput stops to grow or memory ends. What is made of the
numbers is `costs.calibration`'s and `maths`' business.
"""

from __future__ import annotations

from dataclasses import replace

from loratune.costs.calibration import Calibration
from loratune.costs.correction import Peak, fit_correction
from loratune.costs.execution import Device
from loratune.costs.limits import Limits
from loratune.costs.measured_steps import Drawn, MeasuredStep, forward_rate, measure_step
from loratune.costs.step_time import efficient_tokens
from loratune.engine.pack import PackEngine
from loratune.values import HyperParameters, Trial

PACK_SIZE: dict[Device, int] = {"cpu": 8, "cuda": 32}
"""Beyond these a pack gains little: on two cores a pack of 8 has reached the speed of the base's products."""

SECONDS = 1.0
"""Of each measurement, after a warm-up."""
_RUNGS: dict[Device, tuple[int, ...]] = {
    "cpu": (256, 512, 1024),
    "cuda": (2048, 4096, 8192, 16384, 32768, 65536),
}
"""Tokens of a step that are tried, and so of a micro-batch."""
_FEWEST_RUNGS = 2
_GAIN = 1.05
"""A rung that is not so much faster per token than the one before is the last."""


def calibrate(
    engine: PackEngine, limits: Limits, recipe: HyperParameters, *, pack_size: int | None = None
) -> Calibration:
    """A few measured steps of a recipe: packs of growing steps, one trial alone, evaluation.

    Args:
        pack_size: trials in a pack; None: `PACK_SIZE` of the device.
    """
    recipe = replace(recipe, r=min(recipe.r, engine.base.profile.largest_rank))
    slots = pack_size or PACK_SIZE[limits.execution.device]
    slots, allowed = _share_memory(limits, recipe, slots)
    drawn: Drawn = {}
    steps, peaks = _climb(engine, limits, recipe, slots, allowed, drawn)
    points = [(step.tokens, step.seconds) for step in steps.values()]
    best = efficient_tokens(points, allowed=max(tokens for tokens, _ in points))
    rung = next(rung for rung, step in steps.items() if step.tokens == best)
    lonely = replace(recipe, batch_size=min(recipe.batch_size, len(engine.train)))
    initial = [Trial(hyper_parameters=lonely, seed=seed) for seed in range(min(slots, PACK_SIZE["cpu"]))]
    alone = measure_step(engine, initial[:1], seconds=SECONDS, drawn=drawn)
    if alone.tokens < min(tokens for tokens, _ in points):  # where launching is most of a step
        points.insert(0, (alone.tokens, alone.seconds))
    return Calibration(
        pack=steps[rung].rate,
        alone=alone.rate,
        forward=forward_rate(engine, initial, seconds=SECONDS, drawn=drawn),
        slots=slots,
        steps=tuple(points),
        micro_batch_tokens=max(min(rung, engine.micro_batch_tokens), limits.max_length),
        correction=fit_correction(peaks),
    )


def _share_memory(limits: Limits, recipe: HyperParameters, slots: int) -> tuple[int, int]:
    """Slots, and tokens of a micro-batch beside them: fewer slots where all leave no room for the smallest rung."""
    smallest = max(limits.max_length, _RUNGS[limits.execution.device][0])
    while True:
        allowed = min(limits.largest_micro_batch([recipe] * slots), limits.micro_batch_tokens)
        if allowed >= smallest or slots == 1:
            return slots, max(allowed, limits.max_length)
        slots = max(1, slots // 2)


def _climb(
    engine: PackEngine, limits: Limits, recipe: HyperParameters, slots: int, allowed: int, drawn: Drawn
) -> tuple[dict[int, MeasuredStep], list[Peak]]:
    """Steps by rung, ascending, and the peaks of memory where they can be measured."""
    rungs = [rung for rung in _RUNGS[limits.execution.device] if rung <= allowed] or [allowed]
    steps: dict[int, MeasuredStep] = {}
    peaks: list[Peak] = []
    for rung in rungs:
        trials = _filling(engine, recipe, slots, rung)
        room = engine.micro_batch_tokens
        engine.forget_recorded()  # or a card with room for this step would have none beside those recorded before
        step = measure_step(engine, trials, seconds=SECONDS, drawn=drawn)
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
        _again(engine, recipe, slots, drawn, steps)
    return steps, peaks


def _again(
    engine: PackEngine, recipe: HyperParameters, slots: int, drawn: Drawn, steps: dict[int, MeasuredStep]
) -> None:
    """The first rung once more where kernels compile at first use: all its forms have been met only now."""
    rung, first = next(iter(steps.items()))
    step = measure_step(engine, _filling(engine, recipe, slots, rung), seconds=SECONDS, drawn=drawn)
    if step.rate > first.rate:
        steps[rung] = replace(first, tokens=step.tokens, seconds=step.seconds)


def _filling(engine: PackEngine, recipe: HyperParameters, slots: int, tokens: int) -> list[Trial]:
    """Trials whose step has about so many tokens: as many as there are slots, if a row each is not too much."""
    mean = float(engine.train.lengths.mean())
    count = max(1, min(slots, int(tokens / mean)))
    batch = max(1, min(len(engine.train), int(tokens / mean / count)))
    filled = replace(recipe, batch_size=batch)
    return [Trial(hyper_parameters=filled, seed=seed) for seed in range(count)]


def _peak(limits: Limits, trials: list[Trial], step: MeasuredStep, measured: int) -> Peak:
    """What was predicted for the measured step beside what was measured."""
    pack = [trial.hyper_parameters for trial in trials]
    seen = replace(limits, micro_batch_tokens=step.largest, max_length=min(limits.max_length, step.largest))
    estimate = seen.estimate(pack, step_tokens=step.largest)
    return estimate.peak(measured if limits.execution.device == "cpu" else estimate.held(measured))
