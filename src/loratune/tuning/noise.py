"""The gradient noise scale, measured where a plan compares batch sizes of its own choice: it sets their range.

Knows the workbench and a priced plan; the laws say what the scale means for batch sizes.
"""

from __future__ import annotations

from dataclasses import replace
from math import isfinite

from loratune.costs.calibration import Calibration
from loratune.maths.laws import useful_batches
from loratune.runners.local import LocalRunner
from loratune.runners.runner import NoiseJob, NoiseMeasured, only
from loratune.search.space import prior_setting
from loratune.tuning.experience import Corrections
from loratune.tuning.forecast import Forecast, forecast
from loratune.tuning.options import SearchOptions
from loratune.tuning.workbench import Workbench
from loratune.values import NoiseScale, Stage
from loratune.values.events import Note, Tell

SHARE = 0.1
"""Of the rows of one full run that the measurement may read."""
STRATEGY = "evidence"
"""The strategy whose batch sizes are relative to a law."""


def first_forecast(
    bench: Workbench,
    options: SearchOptions,
    calibration: Calibration,
    *,
    started: float,
    corrections: Corrections,
    tell: Tell,
) -> Forecast:
    """The plan of a new search, with the noise scale measured where it is of use.

    A search that goes on keeps the range that it began with: its trials so far rest on it.
    """
    priced = forecast(bench, options, calibration, started=started, corrections=corrections)
    if not _compares_batches(options, priced):
        return priced
    tell(Note(text="Measuring the gradient noise scale: it sets the range of batch sizes."))
    corrections = _with_range(bench.calibrated(calibration), options, priced)
    return forecast(bench, options, calibration, started=started, corrections=corrections)


def _compares_batches(options: SearchOptions, priced: Forecast) -> bool:
    """Whether the plan tries batch sizes that the user has not named."""
    planned = any(stage.name == str(Stage.BATCH) and stage.trials for stage in priced.plan.stages)
    return options.strategy == STRATEGY and not options.batch_sizes and planned


def _with_range(bench: Workbench, options: SearchOptions, priced: Forecast) -> Corrections:
    """The plan's corrections with a range of batch sizes, or with a note why there is none."""
    context = priced.context
    setting = prior_setting(context)
    job = NoiseJob(
        r=setting.r,
        lora_alpha=setting.lora_alpha,
        share=SHARE,
        epochs=context.wishes.epochs,
        seed=options.seed,
    )
    measured = only(LocalRunner(engine=bench.engine).run([job]))
    assert isinstance(measured, NoiseMeasured)
    noise, known = measured.noise, priced.corrections
    if noise is None:
        note = (
            "The gradient noise scale was not measured (it takes more than a tenth of a full run here): the batch "
            "sizes tried are those around the law's."
        )
        return replace(known, notes=(*known.notes, note))
    batches = useful_batches(rows=context.data.rows, epochs=context.wishes.epochs, noise=noise)
    return replace(known, notes=(*known.notes, _told(noise, batches)), batches=batches)


def _told(noise: NoiseScale, batches: tuple[float, float]) -> str:
    low, value, high = (
        f"{end:.0f}" if isfinite(end) else "no upper end" for end in (noise.low, noise.rows, noise.high)
    )
    found = f"is {value} rows" if isfinite(noise.rows) else "has no upper end"
    return (
        f"The gradient noise scale {found} (90 % [{low}, {high}], measured over {noise.steps} early steps; it grows as "
        f"the loss falls), so batch sizes from {batches[0]:g} to {batches[1]:g} are worth trying."
    )
