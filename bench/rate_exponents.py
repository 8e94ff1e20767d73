"""Refits the learning-rate law's exponents in rows, batch size and width to all measured tasks.

python bench/rate_exponents.py

First the exponent in rows from tasks measured at several sizes, where nothing else changes: each dataset's slope, then
their mean with the spread between datasets (Hartung-Knapp). Then all exponents together: between tasks rows, batch and
width change at once (few rows go with small models), so that each keeps what else is known of it as a prior.
"""

from collections import defaultdict
from collections.abc import Sequence
from math import exp, log
from unittest.mock import patch

import numpy as np
from scipy import stats

from loratune.maths import laws
from loratune.maths.learned import RATE_SPREAD, measured_tasks, rate_residuals
from loratune.values import StudiedTask
from prior_error import errors

INTERVALS = {
    "banking77": (-0.44, 0.03),
    "friends": (-0.20, -0.13),
    "gsm8k": (-0.02, 0.01),
    "reuters-r8": (-0.25, 0.46),
}
"""95 % of each slope, by bootstrap over seeds (docs/evidence.md)."""
PUBLISHED = (-0.26, 0.054)
"""Learning Rate Matters (2602.04998): Gemma-3-1B, 5,000 to 395,000 rows; sd from its grid of rates 1.78 apart."""
BATCH = (0.47, 0.11)
"""Mean of five sources and its sd: .83 (2602.04998), .54 and .33 (banking77), .5 (Adam's root), .16 (2507.07101)."""
WIDTH = (0.4, 0.1)
"""muA's .5, the Tulu-3 sweep's .25."""
LEVEL_SD = 0.2
NAMES = ("EXAMPLES_EXPONENT", "BATCH_EXPONENT", "WIDTH_EXPONENT")


def slopes(tasks: Sequence[StudiedTask]) -> dict[str, float]:
    """Each dataset's exponent in rows: mean over ranks of the slope between two sizes, all else equal."""
    curves: dict[tuple[str, int, float, int], dict[float, float]] = defaultdict(dict)
    for task in tasks:
        if "rows" in task.model:  # one series of measurements, two sizes
            for each in task.optima:
                curves[task.dataset, each.r, each.lora_alpha, each.batch_size][task.rows] = each.learning_rate
    found: dict[str, list[float]] = defaultdict(list)
    for (dataset, *_), rates in curves.items():
        if len(rates) > 1:
            low, high = min(rates), max(rates)
            found[dataset].append(log(rates[high] / rates[low]) / log(high / low))
    return {dataset: float(np.mean(values)) for dataset, values in found.items()}


def pooled(values: Sequence[float], sds: Sequence[float]) -> tuple[float, float, float]:
    """(mean, its sd, sd between) of several measured exponents: DerSimonian-Laird, Hartung-Knapp's error."""
    b, variances = np.array(values), np.array(sds) ** 2
    weights = 1 / variances
    mean = np.average(b, weights=weights)
    excess = (weights * (b - mean) ** 2).sum() - (len(b) - 1)
    between = max(0.0, excess / (weights.sum() - (weights**2).sum() / weights.sum()))
    weights = 1 / (variances + between)
    mean = float(np.average(b, weights=weights))
    error = float(np.sqrt((weights * (b - mean) ** 2).sum() / ((len(b) - 1) * weights.sum())))
    return mean, error, float(between**0.5)


def together(tasks: Sequence[StudiedTask], rows: tuple[float, float]) -> dict[str, float]:
    """The exponents with all datasets' levels, each dataset counting once and deviating by `RATE_SPREAD`."""
    known = [task for task in tasks if task.rows and task.optima and task.hidden_size]
    by_dataset: dict[str, list[tuple[float, list[float]]]] = defaultdict(list)
    for task, residual in zip(known, rate_residuals(known), strict=True):
        batch = float(np.mean([log(max(each.batch_size, 4) / 128) for each in task.optima]))
        features = [1.0, log(max(task.rows * task.epochs, 100) / 1e5), batch, log(3000 / task.hidden_size)]
        by_dataset[task.dataset].append((residual.value, features))
    y = np.array([np.mean([value for value, _ in found]) for found in by_dataset.values()])
    x = np.array([np.mean([features for _, features in found], axis=0) for found in by_dataset.values()])
    now = np.array([0.0, *(getattr(laws, name) for name in NAMES)])
    prior = np.array([0.0, rows[0], BATCH[0], WIDTH[0]]) - now
    precision = np.diag(1 / np.array([LEVEL_SD, rows[1], BATCH[1], WIDTH[1]]) ** 2)
    noise = RATE_SPREAD.dataset**-2
    covariance = np.linalg.inv(precision + noise * x.T @ x)
    change = covariance @ (precision @ prior + noise * x.T @ y)
    found = dict(zip(("level", *NAMES), (now + change).tolist(), strict=True))
    sds = dict(zip(found, np.sqrt(np.diag(covariance)).tolist(), strict=True))
    for name, value in found.items():
        print(f"  {name:<18} {value:+.3f} +- {1.96 * sds[name]:.3f}")
    return found


def left_out() -> tuple[float, float]:
    """Mean factor of error by the law alone and corrected, each dataset left out and counting once."""
    residuals = rate_residuals(measured_tasks())
    sizes: dict[str, int] = defaultdict(int)
    for each in residuals:
        sizes[each.dataset] += 1
    weights = [1 / sizes[each.dataset] for each in residuals]
    law, corrected = (exp(float(np.average(e, weights=weights))) for e in errors(residuals, RATE_SPREAD))
    return law, corrected


def main() -> None:
    tasks = measured_tasks()
    own = slopes(tasks)
    for dataset, value in own.items():
        print(
            f"rows, {dataset:<12} {value:+.3f} (95 % {INTERVALS[dataset][0]:+.2f} to {INTERVALS[dataset][1]:+.2f})"
        )
    sds = [(high - low) / 3.92 for low, high in (INTERVALS[dataset] for dataset in own)]
    for name, values, errors_ in (
        ("our four datasets", list(own.values()), sds),
        ("and the published one", [*own.values(), PUBLISHED[0]], [*sds, PUBLISHED[1]]),
    ):
        mean, error, between = pooled(values, errors_)
        half = float(stats.t.ppf(0.975, len(values) - 1)) * error
        print(
            f"rows, {name}: {mean:+.3f} ({mean - half:+.2f} to {mean + half:+.2f}), sd between datasets {between:.2f}"
        )
    print("all together:")
    together(tasks, (mean, error))
    print("error on a dataset that was left out (factor; law alone, corrected by the others):")
    for rows, batch, width in ((-0.26, 0.5, 0.4), (-0.13, 0.5, 0.4), (-0.18, 0.4, 0.45), (-0.15, 0.4, 0.45)):
        with patch.multiple(laws, EXAMPLES_EXPONENT=rows, BATCH_EXPONENT=batch, WIDTH_EXPONENT=width):
            print(
                f"  rows {rows:+.2f}, batch {batch:.2f}, width {width:.2f}: {left_out()[0]:.2f}, {left_out()[1]:.2f}"
            )


if __name__ == "__main__":
    main()
