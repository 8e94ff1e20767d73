"""What mattered: contrasts between values of one hyper-parameter, and what it costs in time. Arrays only.

Shares of variance are functional ANOVA (Hutter, Hoos, Leyton-Brown 2014): over the box of the values tried,
each equally likely, the variance of the marginal mean of one hyper-parameter over the whole variance.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import inf, isfinite

import numpy as np
import numpy.typing as npt

from loratune.maths.memory import adapter_parameters
from loratune.values import HyperParameters, ModelProfile

Floats = npt.NDArray[np.float64]

TRIALS_EACH = 20
"""Trials for each hyper-parameter that varies. Drawn from the banking77 grid (8 ranks x 5 learning rates), 40 trials
gave the two shares with a mean error of .06, 24 with .18 and 16 with .27."""
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


def own_effect(
    name: str, settings: Sequence[Mapping[str, float]], losses: Sequence[float], centre: Mapping[str, float]
) -> float | None:
    """The worst value's loss minus the best value's, each at the best learning rate tried with it.

    All else is as in `centre`. The learning rate itself is compared with all else as in `centre`. Values at
    which everything diverged (an infinite loss) are left out. None below two values.

    Args:
        settings: [trials] values by hyper-parameter, `learning_rate` among them; losses: [trials] nats.
    """
    groups: dict[tuple[float, float], list[float]] = defaultdict(list)
    for setting, loss in zip(settings, losses, strict=True):
        free = {name, "learning_rate"}
        if all(setting[other] == centre[other] for other in centre if other not in free):
            groups[setting[name], setting["learning_rate"]].append(loss)
    best: dict[float, float] = {}
    for (value, _), members in groups.items():
        mean = float(np.mean(members))
        if isfinite(mean):
            best[value] = min(best.get(value, inf), mean)
    return max(best.values()) - min(best.values()) if len(best) > 1 else None


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
