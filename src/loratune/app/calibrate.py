"""The short measurement before a plan: how time and memory grow with the tokens of a step, on the user's rows.

Climbs from small steps to larger ones until throughput stops to grow or memory ends. Knows the workbench;
what is made of the numbers is `run.calibration`'s and `maths`' business.
"""

from __future__ import annotations

from dataclasses import replace

from loratune.app.options import SearchOptions
from loratune.app.workbench import PACK_SIZE, Workbench
from loratune.engine.calibrate import MeasuredStep, forward_rate, measure_step
from loratune.maths.correction import Peak, fit_correction
from loratune.maths.execution import Device
from loratune.maths.limits import Limits
from loratune.maths.steptime import efficient_tokens
from loratune.run.calibration import Calibration
from loratune.values import HyperParameters, Trial

SECONDS = 1.0
"""Of each measurement, after a warm-up."""
_RUNGS: dict[Device, tuple[int, ...]] = {
    "cpu": (256, 512, 1024, 2048),
    "cuda": (2048, 4096, 8192, 16384, 32768, 65536),
}
"""Tokens of a step that are tried, and so of a micro-batch."""
_FEWEST_RUNGS = 2
_GAIN = 1.05
"""A rung that is not so much faster per token than the one before is the last."""


def calibrate(bench: Workbench, options: SearchOptions) -> Calibration:
    """A few measured steps of the default recipe: packs of growing steps, one trial alone, evaluation."""
    recipe = options.hyper_parameters()
    recipe = replace(recipe, r=min(recipe.r, bench.base.profile.largest_rank))
    slots = options.pack_size or PACK_SIZE[bench.limits.execution.device]
    slots, allowed = _share_memory(bench.limits, recipe, slots)
    steps, peaks = _climb(bench, recipe, slots, allowed)
    points = tuple((step.tokens, step.seconds) for step in steps.values())
    best = efficient_tokens(points, allowed=max(tokens for tokens, _ in points))
    rung = next(rung for rung, step in steps.items() if step.tokens == best)
    alone = replace(recipe, batch_size=min(recipe.batch_size, len(bench.data.train)))
    initial = [Trial(hyper_parameters=alone, seed=seed) for seed in range(min(slots, PACK_SIZE["cpu"]))]
    return Calibration(
        pack=steps[rung].rate,
        alone=measure_step(bench.engine, initial[:1], seconds=SECONDS).rate,
        forward=forward_rate(bench.engine, initial, seconds=SECONDS),
        slots=slots,
        steps=points,
        micro_batch_tokens=max(rung, bench.limits.max_length),
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
    bench: Workbench, recipe: HyperParameters, slots: int, allowed: int
) -> tuple[dict[int, MeasuredStep], list[Peak]]:
    """Steps by rung, ascending, and the peaks of memory where they can be measured."""
    rungs = [rung for rung in _RUNGS[bench.limits.execution.device] if rung <= allowed] or [allowed]
    steps: dict[int, MeasuredStep] = {}
    peaks: list[Peak] = []
    for rung in rungs:
        trials = _filling(bench, recipe, slots, rung)
        step = measure_step(bench.engine, trials, seconds=SECONDS)
        gain = step.rate / max(each.rate for each in steps.values()) if steps else 2.0
        if steps and step.tokens <= max(each.tokens for each in steps.values()):
            break  # the rows are too few for a larger step
        steps[rung] = step
        if step.peak_bytes is not None:
            peaks.append(_peak(bench.limits, trials, step, step.peak_bytes))
        if gain < _GAIN and len(steps) >= _FEWEST_RUNGS:
            break
    return steps, peaks


def _filling(bench: Workbench, recipe: HyperParameters, slots: int, tokens: int) -> list[Trial]:
    """Trials whose step has about so many tokens: as many as there are slots, if a row each is not too much."""
    mean = float(bench.data.train.lengths.mean())
    count = max(1, min(slots, int(tokens / mean)))
    batch = max(1, min(len(bench.data.train), int(tokens / mean / count)))
    filled = replace(recipe, batch_size=batch)
    return [Trial(hyper_parameters=filled, seed=seed) for seed in range(count)]


def _peak(limits: Limits, trials: list[Trial], step: MeasuredStep, measured: int) -> Peak:
    """What was predicted for the measured step beside what was measured, the context of a GPU added."""
    pack = [trial.hyper_parameters for trial in trials]
    seen = replace(limits, micro_batch_tokens=step.largest, max_length=min(limits.max_length, step.largest))
    estimate = seen.estimate(pack, step_tokens=step.largest)
    context = limits.execution.runtime if limits.execution.device == "cuda" else 0
    return estimate.peak(measured + context)
