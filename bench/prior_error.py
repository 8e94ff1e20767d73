"""How far the prior errs on what it has not seen: rank and learning rate, dataset by dataset left out.

python bench/prior_error.py [--csv]

"Law" is the closed form alone, "corrected" with the other datasets' tasks (`maths.learned`); errors are factors,
exp |ln(measured / predicted)|, each dataset counting the same in the mean.
"""

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Sequence
from math import exp

import numpy as np

from loratune.maths.learned import RANK_SPREAD, RATE_SPREAD, measured_tasks, rank_residuals, rate_residuals
from loratune.maths.transfer import LEVEL, Residual, Spread, believe, calibrate

Errors = tuple[np.ndarray, np.ndarray]


def errors(residuals: Sequence[Residual], spread: Spread) -> Errors:
    """[tasks] |ln error| of the law alone and of the corrected one, the task's own dataset left out."""
    corrected = []
    for each in residuals:
        others = [other for other in residuals if other.dataset != each.dataset]
        corrected.append(abs(each.value - believe(others, each, spread).mean))
    return np.abs([each.value for each in residuals]), np.array(corrected)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--csv", action="store_true", help="one line per task")
    given = parser.parse_args()
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if given.csv:
        writer.writerow(("of", "dataset", "family", "kind", "law_factor", "corrected_factor"))
    for name, residuals, spread in (
        ("learning rate", rate_residuals(measured_tasks()), RATE_SPREAD),
        ("rank", rank_residuals(measured_tasks()), RANK_SPREAD),
    ):
        law, corrected = errors(residuals, spread)
        if given.csv:
            for each, before, after in zip(residuals, law, corrected, strict=True):
                row = (name, each.dataset, each.family, each.kind, f"{exp(before):.3f}", f"{exp(after):.3f}")
                writer.writerow(row)
            continue
        sizes = Counter(each.dataset for each in residuals)
        weights = np.array([1 / sizes[each.dataset] for each in residuals])
        means = [exp(float(np.average(found, weights=weights))) for found in (law, corrected)]
        found = calibrate(residuals, Residual(dataset="new"), spread)
        print(
            f"{name}: mean factor {means[0]:.2f} by the law, {means[1]:.2f} corrected; standardised error at "
            f"{LEVEL:.0%} {found.factor:.2f} ({found.sentence})"
        )


if __name__ == "__main__":
    main()
