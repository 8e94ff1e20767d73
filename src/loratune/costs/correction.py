"""How a short measurement corrects the memory model on this device, in every prediction.

Knows bytes; nothing of how they are measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import lsq_linear

SCALES = (0.5, 2.0)
"""What short-lived memory may be scaled by; a measurement that asks for more is not believed."""
_LARGEST_SCALE = 8.0
"""The same after a real out-of-memory error, which is taken as a measurement."""
_LARGEST_FIXED = 4 * 2**30
_MARGIN = 1.01
"""Factor by which the prediction exceeds the observed peak after an out-of-memory error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Correction:
    """Multiplies the bytes that grow with the tokens in flight, and adds fixed ones. The default changes nothing."""

    scale: float = 1.0
    fixed: int = 0
    """Bytes, negative where the process needs less than the model assumes."""


UNCORRECTED = Correction()


@dataclass(frozen=True, kw_only=True, slots=True)
class Peak:
    """One prediction in the parts that a correction separates, and what was measured; bytes."""

    steady: int
    """Predicted parts that are known exactly: base, adapters, optimiser."""
    runtime: int
    """Predicted for the process itself."""
    transient: int
    """Predicted parts that live within a step."""
    measured: int
    """The whole."""


def fit_correction(peaks: Sequence[Peak]) -> Correction:
    """Least squares of measured = steady + runtime + fixed + scale · transient, within bounds; then raised
    until no measured peak is above its prediction.

    With one size in flight only `scale` or `fixed` can be determined: all of the difference is laid to the fixed part
    where it is negative (libraries that take less), else to the scale. No peaks: no correction.
    """
    if not peaks:
        return UNCORRECTED
    transient = np.array([peak.transient for peak in peaks], float)
    rest = np.array([peak.measured - peak.steady - peak.runtime for peak in peaks], float)
    lowest = -float(min(peak.runtime for peak in peaks))
    unit = transient.max()
    if np.ptp(transient) < 0.1 * unit:
        scale, fixed = _of_one_size(float(rest.max()), float(unit), lowest)
    else:
        matrix = np.column_stack([transient / unit, np.ones(len(peaks))])
        bounds = ([SCALES[0], lowest / unit], [SCALES[1], _LARGEST_FIXED / unit])
        scale, part = lsq_linear(matrix, rest / unit, bounds=bounds).x
        fixed = part * unit
    short = max(0.0, float(np.max(rest - scale * transient - fixed)))
    return Correction(scale=float(scale), fixed=round(fixed + short))


def _of_one_size(rest: float, transient: float, lowest: float) -> tuple[float, float]:
    """Scale, and fixed bytes, where sizes do not separate the two."""
    if rest <= transient:
        return 1.0, max(rest - transient, lowest)
    scale = min(SCALES[1], rest / transient)
    return scale, rest - scale * transient


def corrected(correction: Correction, observed: int, predicted: Peak) -> Correction:
    """The correction after a real out-of-memory error: never smaller, and such that the pack that failed would
    have been predicted at 1 % above what it was observed to need.

    Args:
        correction: what was in force.
        observed: bytes that were held when the allocation failed, with the bytes asked for.
        predicted: the failed pack's parts *without* correction (`MemoryEstimate.peak`); its `measured` is not read.
    """
    wanted = _MARGIN * observed - predicted.steady - predicted.runtime - correction.fixed
    if wanted <= correction.scale * predicted.transient:
        return correction
    scale = wanted / predicted.transient if predicted.transient else np.inf
    if scale <= _LARGEST_SCALE:
        return replace(correction, scale=float(scale))
    left = wanted - correction.scale * predicted.transient
    return replace(correction, fixed=correction.fixed + round(left))
