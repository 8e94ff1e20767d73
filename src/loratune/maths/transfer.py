"""What measured tasks say about a new one: a Gaussian model with shared effects, and how far it errs.

A task's residual is the logarithm of what was measured over what a law said. Residuals share a level, slopes in the
task's features, and effects of the dataset, of the model's family and of the kind of task, all Gaussian with mean 0
(two-way additive with shrinkage, §8 of the survey); so the posterior is linear algebra. Its interval is calibrated
by leaving out one dataset at a time (one task at a time where the new task's dataset has been measured). Knows
residuals; neither laws nor files.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

LEVEL = 0.9
"""Level of all intervals."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Residual:
    """ln(measured / law) of one task. An empty name shares no effect with anything."""

    value: float = 0.0
    dataset: str = ""
    family: str = ""
    kind: str = ""
    features: tuple[float, ...] = ()
    sd: float = 0.0
    """Standard deviation of `value`'s own measurement."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Standard deviations before anything was measured, in natural logarithms."""

    level: float
    dataset: float
    family: float
    kind: float = 0.0
    slopes: tuple[float, ...] = ()
    """Slopes by feature, per unit of it."""
    own: float = 0.0
    """Standard deviation of what a task shares with no other."""

    def covariance(self, one: Sequence[Residual], other: Sequence[Residual]) -> npt.NDArray[np.float64]:
        """[one, other] of the true residuals, own measurements' noise left out."""
        total = np.full((len(one), len(other)), self.level**2)
        for name, sd in (("dataset", self.dataset), ("family", self.family), ("kind", self.kind)):
            left, right = ([getattr(each, name) for each in side] for side in (one, other))
            total += sd**2 * np.array(
                [[a == b != "" for b in right] for a in left], dtype=np.float64
            ).reshape(total.shape)
        for index, sd in enumerate(self.slopes):
            total += sd**2 * np.outer([e.features[index] for e in one], [e.features[index] for e in other])
        return total

    def alone(self, target: Residual) -> float:
        """Variance of one true residual; the effects of an empty name count too."""
        named = replace(
            target,
            dataset=target.dataset or "?",
            family=target.family or "?",
            kind=target.kind or "?",
        )
        return float(self.covariance([named], [named])[0, 0]) + self.own**2


@dataclass(frozen=True, kw_only=True, slots=True)
class Belief:
    """A residual as far as it is known: mean and sd of ln(truth / law)."""

    mean: float
    sd: float

    def updated(self, value: float, sd: float) -> "Belief":
        """The belief after one more independent Gaussian measurement of the same residual."""
        weight = self.sd**2 / (self.sd**2 + sd**2)
        return Belief(mean=self.mean + weight * (value - self.mean), sd=self.sd * (1 - weight) ** 0.5)


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """How far the model erred on what it had not seen."""

    factor: float
    """Half-width of the interval in the belief's sd."""
    tasks: int
    datasets: int
    coverage: float
    """Level that so few datasets can vouch for, at most `LEVEL`."""
    unit: str = "dataset"
    """What was left out at a time."""

    @property
    def sentence(self) -> str:
        """`90 % by leaving out one dataset at a time, n = 31 tasks of 4 datasets`."""
        return (
            f"{100 * self.coverage:.0f} % by leaving out one {self.unit} at a time, "
            f"n = {self.tasks} task{'s' * (self.tasks != 1)} of {self.datasets} dataset{'s' * (self.datasets != 1)}"
        )


def believe(measured: Sequence[Residual], target: Residual, spread: Spread) -> Belief:
    """The target's residual given the measured ones; `target.value` and `target.sd` are not read."""
    variance = spread.alone(target)
    if not measured:
        return Belief(mean=0.0, sd=variance**0.5)
    across = spread.covariance([target], measured)[0]
    noise = np.diag([each.sd**2 + 1e-9 for each in measured])
    own = np.diag([spread.alone(each) for each in measured])
    shared = spread.covariance(measured, measured)
    np.fill_diagonal(shared, own.diagonal())
    solved = np.linalg.solve(shared + noise, np.column_stack([across, [each.value for each in measured]]))
    return Belief(
        mean=float(across @ solved[:, 1]),
        sd=float(max(variance - across @ solved[:, 0], 1e-12) ** 0.5),
    )


def calibrate(measured: Sequence[Residual], target: Residual, spread: Spread) -> Calibration:
    """The quantile of standardised errors, each dataset counting the same (split-conformal, weighted).

    With so few datasets that the quantile is the largest error, the interval is no narrower than the
    Gaussian's and the coverage it can vouch for is datasets / (datasets + 1).
    """
    same_data = target.dataset != "" and any(each.dataset == target.dataset for each in measured)
    errors = errors_of(measured, spread, within=same_data)
    counts = Counter(each.dataset for each in measured)
    units = len(measured) if same_data else len(counts)
    gaussian = NormalDist().inv_cdf(0.5 + LEVEL / 2)
    if not errors:
        return Calibration(factor=gaussian, tasks=0, datasets=0, coverage=LEVEL)
    weights = [1.0 if same_data else 1 / counts[each.dataset] for each in measured]
    wanted = LEVEL * (units + 1) / units
    found = _quantile([abs(error) for error in errors], weights, min(wanted, 1.0))
    return Calibration(
        factor=found if wanted <= 1 else max(found, gaussian),
        tasks=len(measured),
        datasets=len(counts),
        coverage=min(LEVEL, units / (units + 1)),
        unit="task" if same_data else "dataset",
    )


def errors_of(measured: Sequence[Residual], spread: Spread, *, within: bool = False) -> list[float]:
    """Standardised error of each task's prediction from the tasks on other datasets.

    With `within`: from all other tasks, those on its own dataset included.
    """
    errors = []
    for index, each in enumerate(measured):
        others = [
            other
            for number, other in enumerate(measured)
            if number != index and (within or other.dataset != each.dataset)
        ]
        belief = believe(others, each, spread)
        errors.append((each.value - belief.mean) / (belief.sd**2 + each.sd**2) ** 0.5)
    return errors


def _quantile(values: Sequence[float], weights: Sequence[float], level: float) -> float:
    """The smallest value that at least `level` of the weight does not exceed."""
    order = np.argsort(values)
    reached = np.cumsum(np.asarray(weights)[order]) / np.sum(weights)
    place = min(int(np.searchsorted(reached, level - 1e-9)), len(order) - 1)
    return float(values[order[place]])
