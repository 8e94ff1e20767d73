"""What mattered: contrasts between values of one hyper-parameter, and what it costs in time. Arrays only.

Shares of variance are functional ANOVA (Hutter, Hoos, Leyton-Brown 2014): over the box of the values tried,
each equally likely, the variance of the marginal mean of one hyper-parameter over the whole variance.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import isfinite, sqrt

import numpy as np
import numpy.typing as npt

from loratune.costs.memory import adapter_parameters
from loratune.maths.noninferiority import Comparison
from loratune.values import HyperParameters, ModelProfile

Floats = npt.NDArray[np.float64]

TRIALS_EACH = 20
"""Trials for each hyper-parameter that varies. Drawn from the banking77 grid (8 ranks x 5 learning rates), 40 trials
gave the two shares with a mean error of .06, 24 with .18 and 16 with .27."""
_ALMOST_NORMAL = 1e6
"""Degrees of freedom."""
LAUNCH_TOKENS = {"cpu": 64, "cuda": 1024}
"""Cost of one more step, in tokens."""


def wanted_trials(varied: int) -> int:
    """Trials from which on shares of the variance mean something."""
    return TRIALS_EACH * max(1, varied)


def coordinates(values: Sequence[float]) -> tuple[Floats, tuple[float, float]]:
    """A hyper-parameter's values on the scale on which they are searched, and the box that they stand for.

    Logarithmic where all are above 0. The box reaches half a step beyond the outermost values, so that every
    value of an even grid stands for an equal part of it.
    """
    found = np.asarray(values, np.float64)
    if (found > 0).all():
        found = np.log(found)
    distinct = np.unique(found)
    steps = np.diff(distinct)
    return found, (float(distinct[0] - steps[0] / 2), float(distinct[-1] + steps[-1] / 2))


@dataclass(frozen=True, kw_only=True, slots=True)
class Contrast:
    """The two values of a hyper-parameter that differ most."""

    effect: float
    """Mean loss at the worst value minus that at the best, nats."""
    worst: tuple[int, ...]
    best: tuple[int, ...]
    """Numbers of the trials at these values."""
    values: int
    """How many were compared."""


def contrast(
    name: str, settings: Sequence[Mapping[str, float]], losses: Sequence[float], centre: Mapping[str, float]
) -> Contrast | None:
    """The worst value against the best, each at the best learning rate tried with it.

    All else is as in `centre`. The learning rate itself is compared with all else as in `centre`. Values at
    which everything diverged (an infinite loss) are left out. None below two values.

    Args:
        settings: [trials] values by hyper-parameter, `learning_rate` among them; losses: [trials] nats.
    """
    groups: dict[tuple[float, float], list[int]] = defaultdict(list)
    for number, setting in enumerate(settings):
        free = {name, "learning_rate"}
        if all(setting[other] == centre[other] for other in centre if other not in free):
            groups[setting[name], setting["learning_rate"]].append(number)
    means = {key: float(np.mean([losses[number] for number in members])) for key, members in groups.items()}
    best: dict[float, tuple[float, float]] = {}
    for key, mean in means.items():
        if isfinite(mean) and (key[0] not in best or mean < means[best[key[0]]]):
            best[key[0]] = key
    if len(best) < 2:
        return None
    worst, first = (end(best.values(), key=means.__getitem__) for end in (max, min))
    return Contrast(
        effect=means[worst] - means[first],
        worst=tuple(groups[worst]),
        best=tuple(groups[first]),
        values=len(best),
    )


def range_interval(comparison: Comparison, values: int) -> tuple[float, float] | None:
    """95 % interval of the difference between two of `values` that were picked as the farthest apart; at least 0.

    Tukey's: quantiles of the studentised range, so that it holds for all pairs at once; Student's for two values.
    None where the noise between seeds is unknown.
    """
    if not comparison.seeds_measured:
        return None
    half = _studentised(values, min(comparison.degrees, _ALMOST_NORMAL)) / sqrt(2) * comparison.standard_error
    return max(0.0, comparison.difference - half), comparison.difference + half


@cache
def _studentised(values: int, degrees: float) -> float:
    """The 95 % quantile of the studentised range; SciPy integrates it, which takes a tenth of a second."""
    from scipy.stats import studentized_range  # a second of every start, where the rest needs none of it

    return float(studentized_range.ppf(0.95, values, degrees))


def noise_share(groups: Sequence[Sequence[float]]) -> float | None:
    """Variance between repeats of the same setting over the variance of all losses; None without repeats."""
    repeats = [np.asarray(group, np.float64) for group in groups if len(group) > 1]
    everything = np.concatenate([np.asarray(group, np.float64) for group in groups])
    degrees = sum(len(group) - 1 for group in repeats)
    whole = float(everything.var())
    if degrees == 0 or whole == 0:
        return None
    return min(1.0, sum(float(((group - group.mean()) ** 2).sum()) for group in repeats) / degrees / whole)


def relative_time(
    model: ModelProfile, values: HyperParameters, *, mean_length: float, launch_tokens: float
) -> float:
    """Time of one trial alone, in base-model passes per trained token.

    A frozen base costs 4 operations for each parameter and token (forward, and backward without weight
    gradients), an adapter 6 for each of its own; each step costs as much as `launch_tokens` more tokens.

    Args:
        mean_length: tokens of a row.
    """
    base = max(1, model.parameters - model.embedding_parameters)
    work = 1 + 6 * adapter_parameters(model, values) / (4 * base)
    return work + launch_tokens / (values.batch_size * mean_length)
