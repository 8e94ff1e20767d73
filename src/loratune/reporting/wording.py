"""Numbers in the words of a report: durations, sizes, learning rates, intervals. Knows no facts."""

from math import isfinite


def duration(seconds: float) -> str:
    """`48 s`, `7.5 min`, `2.1 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def size(count: int) -> str:
    """Bytes in binary units."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def count(value: float) -> str:
    """`950`, `4.9k`, `3.1M`, `2.4B`."""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.0f}"


def rate(learning_rate: float) -> str:
    """`1e-4`, `3.5e-4`: two digits, no padding zeros."""
    mantissa, exponent = f"{learning_rate:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def number(value: float | None, digits: int = 4) -> str:
    """Four significant digits; a dash where there is no number."""
    if value is None or not isfinite(value):
        return "–"
    return f"{value:.{digits}g}"


def interval(bounds: tuple[float, float] | None, digits: int = 3) -> str:
    """`[-0.002, 0.004]`; one-sided bounds as `≤ 0.004` and `≥ -0.002`; empty without one."""
    if bounds is None or not any(map(isfinite, bounds)):
        return ""
    low, high = bounds
    if not isfinite(low):
        return f"≤ {high:.{digits}g}"
    if not isfinite(high):
        return f"≥ {low:.{digits}g}"
    return f"[{low:.{digits}g}, {high:.{digits}g}]"
