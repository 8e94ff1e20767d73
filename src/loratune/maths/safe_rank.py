"""Two ranks before anything is trained: as likely enough as not, and safe; and how both did on measured tasks.

A rank that is too small costs nats, one that is too large costs memory: so the safe rank is the upper end of what a
task may need, and never below the rank that many take for every task.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, exp, log, log2

import numpy as np

from loratune.maths.learned import Learned, law_rank, learn_rank
from loratune.maths.optimum import rank_curve
from loratune.values import StudiedTask

USUAL_RANK = 32
"""What the safe rank must not lose to: of the usual constants (8, 16, 32, 64) the best on measured tasks."""
LARGEST = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """Nats above the best rank's loss, each rank at its own learning rate; the task's dataset was not known."""

    mean: float
    worst: float
    tasks: int
    datasets: int

    @property
    def told(self) -> str:
        """In words."""
        return (
            f"{self.mean:.4f} nats above the best rank on average and {self.worst:.4f} at most on {self.tasks} "
            f"measured tasks, {self.datasets} datasets left out in turn"
        )


def likely_rank(learned: Learned, law: float, floor: float = 1.0) -> int:
    """The smallest power of two that is as likely enough as not, at least `floor`."""
    return _power_of_two(max(law * learned.factor, floor))


def safe_rank(learned: Learned, law: float, floor: float = 1.0) -> int:
    """The power of two that is enough with about 5 in 6 (one sd above the middle), at least 32, at most 256."""
    upper = law * learned.factor * exp(learned.belief.sd)
    return min(max(_power_of_two(max(upper, floor)), USUAL_RANK), LARGEST)


def left_out(tasks: Sequence[StudiedTask]) -> dict[str, LeftOut]:
    """The `likely` and the `safe` rank on every task with a rank curve, and `constant 32`; empty without such tasks."""
    curves = [
        (task, curve) for task in tasks if task.parameters_per_rank and (curve := rank_curve(task.optima))
    ]
    regrets: dict[str, list[float]] = {"likely": [], "safe": [], f"constant {USUAL_RANK}": []}
    for task, curve in curves:
        law, learned = law_rank(task), learn_rank(task, [x for x in tasks if x.dataset != task.dataset])
        chosen = (likely_rank(learned, law), safe_rank(learned, law), USUAL_RANK)
        for found, r in zip(regrets.values(), chosen, strict=True):
            found.append(loss_at(curve, r) - min(curve.values()))
    datasets = len({task.dataset for task, _ in curves})
    return {
        name: LeftOut(mean=float(np.mean(found)), worst=max(found), tasks=len(found), datasets=datasets)
        for name, found in regrets.items()
        if found
    }


def loss_at(curve: dict[int, float], r: float) -> float:
    """Straight in log rank between the measured ones; beyond them the nearest."""
    return float(np.interp(log(r), [log(rank) for rank in curve], list(curve.values())))


def _power_of_two(value: float) -> int:
    return int(2 ** ceil(round(log2(max(1.0, value)), 9)))
