"""What to expect before anything is trained: laws and measured tasks put together for a dataset and a model.

Knows profiles, tasks and what a probe measured, not rows or weights. A search replaces every number here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, exp, log, log2
from typing import TypedDict

import numpy as np

from loratune.maths.curves import rank_curve
from loratune.maths.laws import (
    Prior,
    alpha_law,
    batch_size_law,
    epochs_law,
    learning_rate_law,
    useful_batches,
)
from loratune.maths.learned import Learned, law_rank, learn_rank, learn_rate, measured_tasks
from loratune.values import (
    DataProfile,
    ModelProfile,
    NoiseScale,
    Probe,
    RateTest,
    Recommendation,
    StudiedTask,
    Suggested,
)

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
    def sentence(self) -> str:
        """The phrase for messages."""
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


WIDE = 4.0
"""An interval whose ends differ by more than this factor is no basis for a decision."""
BITS_PER_PARAMETER = 2.0
"""What a trained parameter can hold (Allen-Zhu; §1 of the survey)."""
_UNMEASURED_RANK = 16
_TEST_SD, _EDGE_SD = 0.3, 0.7
"""Standard deviation of ln(a rate test's best learning rate), with the minimum inside or not."""
_EXAMPLES_EXPONENT_SD = 0.13
"""Standard deviation, on a new task, of the law's -0.18, by which a short run's learning rate is carried over."""


class _Basis(TypedDict):
    basis: str
    tasks: int


def task_of(
    data: DataProfile, model: ModelProfile, *, epochs: float | None = None, dataset: str = ""
) -> StudiedTask:
    """The facts of a task that is to be tuned; `dataset` is the digest of its rows where it is known."""
    return StudiedTask(
        dataset=dataset,
        model=model.name,
        family=model.family,
        kind=data.survey.kind if data.survey else "",
        hidden_size=model.hidden_size,
        parameters_per_rank=0 if model.experts_per_token else model.parameters_per_rank,
        rows=float(data.rows),
        epochs=epochs if epochs is not None else epochs_law(data.rows).value,
        supervised_tokens=data.supervised_tokens,
        labels=len(data.labels),
        weight_format=model.weight_format,
    )


def recommend(
    data: DataProfile,
    model: ModelProfile,
    *,
    epochs: float | None = None,
    dataset: str = "",
    tasks: Sequence[StudiedTask] | None = None,
    probe: Probe | None = None,
) -> Recommendation:
    """The prior, with alpha = 2r.

    Args:
        epochs: passes over the training rows if the user has decided; otherwise from the number of rows.
        tasks: measured tasks that correct the laws; those of the package by default.
        probe: what was measured on this task.
    """
    known = measured_tasks() if tasks is None else tasks
    task = task_of(data, model, epochs=epochs, dataset=dataset)
    passes = _epochs(data.rows, epochs)
    batch = _batch_size(task, probe.noise if probe else None)
    rank, safe = _ranks(task, model, known, probe)
    r = round(rank.value)
    rate = _learning_rate(task, known, r, round(batch.value), probe.rate if probe else None)
    suggested = {
        "rank": rank,
        "alpha": _suggested(alpha_law(r)),
        "learning rate": rate,
        "batch size": batch,
        "epochs": passes,
    }
    notes = [_measure(name, value) for name, value in suggested.items() if value.spread > WIDE]
    return Recommendation(
        r=rank,
        safe_r=safe,
        lora_alpha=suggested["alpha"],
        learning_rate=rate,
        batch_size=batch,
        epochs=passes,
        notes=(*notes, *_record(known)),
    )


def _record(tasks: Sequence[StudiedTask]) -> tuple[str, ...]:
    """How the two ranks did where the truth was measured."""
    found = left_out(tasks)
    if not found:
        return ()
    first, *rest = found.items()
    others = (f"{name} {each.mean:.4f} and {each.worst:.4f}" for name, each in rest)
    return (f"the {first[0]} rank was {first[1].sentence}; the {', '.join(others)}",)


def _ranks(
    task: StudiedTask, model: ModelProfile, tasks: Sequence[StudiedTask], probe: Probe | None
) -> tuple[Suggested, Suggested]:
    """The rank that is as likely enough as not, and the safe one, powers of two within what the layers allow."""
    largest = model.largest_rank
    if model.experts_per_token:
        reason = "no law holds for mixtures of experts: the usual rank, to be measured"
        return (
            Suggested(value=min(_UNMEASURED_RANK, largest), low=1, high=min(256, largest), reason=reason),
            Suggested(value=min(USUAL_RANK, largest), low=1, high=min(256, largest), reason=reason),
        )
    learned, law = learn_rank(task, tasks), law_rank(task)
    _, low, high = learned.interval(law)
    reason = (
        f"{task.kind or 'a task of unknown kind'}, {task.supervised_tokens} supervised tokens, "
        f"{task.parameters_per_rank} parameters per unit of rank, family {task.family or 'unknown'}"
        + (f", {task.labels} labels x {task.rows:.0f} rows" if task.labels else "")
        + f": law {law:.2g}, times {learned.factor:.2g} from measured tasks"
    )
    floor = 1.0
    if probe is not None and probe.absorbed is not None:
        floor = max(floor, rank_floor(probe.absorbed.bits, task.parameters_per_rank))
        reason += f"; {probe.absorbed.bits:.0f} bits absorbed need at least rank {ceil(floor)}"
    value, safe = (min(choose(learned, law, floor), largest) for choose in (likely_rank, safe_rank))
    low, high = min(max(low, floor), value), max(min(max(high, floor), 512.0, largest), value)
    safe_reason = (
        "enough with about 5 in 6, where too small a rank costs more than too large a one; never below "
        f"{USUAL_RANK}, which no other rank for all tasks beats on measured ones"
    )
    return (
        Suggested(value=value, low=low, high=high, reason=reason, **_basis(learned)),
        Suggested(value=safe, low=low, high=max(high, safe), reason=safe_reason, **_basis(learned)),
    )


def rank_floor(bits: float, parameters_per_rank: int) -> float:
    """The rank whose parameters can hold `bits` bits at 2 bits each: D/(2·P1), P1 LoRA parameters at rank 1.

    A floor and no more: measured tasks needed up to a hundred times as much (§11 of the survey).
    """
    return max(bits, 0.0) / (BITS_PER_PARAMETER * parameters_per_rank) if parameters_per_rank else 0.0


def _learning_rate(
    task: StudiedTask, tasks: Sequence[StudiedTask], r: int, batch_size: int, test: RateTest | None
) -> Suggested:
    """The corrected law's learning rate; a test's own residual is one more measurement of the correction."""
    law = learning_rate_law(
        r=r,
        lora_alpha=alpha_law(r).value,
        batch_size=batch_size,
        rows=task.rows,
        epochs=task.epochs,
        hidden_size=task.hidden_size,
        family=task.family,
    )
    learned = learn_rate(task, tasks)
    reason = f"{law.reason}; times {learned.factor:.2g} from measured tasks"
    if test is not None:
        value, sd = rate_test_residual(task, test)
        learned = Learned(belief=learned.belief.updated(value, sd), calibration=learned.calibration)
        reason += f", {learned.factor:.2g} with the rate test ({test.best:.2g} was best on {test.rows} rows)"
    middle, low, high = learned.interval(law.value)
    return Suggested(value=middle, low=low, high=high, reason=reason, **_basis(learned))


def rate_test_residual(task: StudiedTask, test: RateTest) -> tuple[float, float]:
    """(ln(best / law), its sd) of a short run, the law taken for the number of examples that it saw.

    Its sd grows with the distance over which the law's exponent in examples carries it.
    """
    law = learning_rate_law(
        r=test.r,
        lora_alpha=test.lora_alpha,
        batch_size=test.batch_size,
        rows=test.rows,
        epochs=1,
        hidden_size=task.hidden_size,
        family=task.family,
    ).value
    carried = _EXAMPLES_EXPONENT_SD * log(max(task.rows * task.epochs / test.rows, 1.0))
    own = _TEST_SD if test.inside else _EDGE_SD
    return log(test.best / law), (own**2 + carried**2) ** 0.5


def _batch_size(task: StudiedTask, noise: NoiseScale | None) -> Suggested:
    """The law's; with a measured noise scale its interval is what the scale's own interval comes to."""
    if noise is None:
        return _suggested(batch_size_law(rows=task.rows, epochs=task.epochs))
    law = batch_size_law(rows=task.rows, epochs=task.epochs, noise_scale=noise.rows)
    low, high = useful_batches(rows=task.rows, epochs=task.epochs, noise=noise)
    return Suggested(
        value=law.value,
        low=low,
        high=high,
        reason=law.reason,
        basis=f"90 % of the measured noise scale ({noise.low:.0f} to {noise.high:.0f} rows), n = {noise.steps} steps",
    )


def _epochs(rows: int, wanted: float | None) -> Suggested:
    if wanted is not None:
        return Suggested(value=wanted, low=wanted, high=wanted, reason="as asked")
    return _suggested(epochs_law(rows))


def _suggested(prior: Prior) -> Suggested:
    return Suggested(value=prior.value, low=prior.low, high=prior.high, reason=prior.reason)


def _basis(learned: Learned) -> _Basis:
    return {"basis": learned.calibration.sentence, "tasks": learned.calibration.tasks}


def _measure(name: str, value: Suggested) -> str:
    return (
        f"the {name} is known only to within a factor {value.spread:.0f} "
        f"({value.low:.2g} to {value.high:.2g}): measure it"
    )
