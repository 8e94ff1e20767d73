"""Where to search: candidates of each hyper-parameter, seeds, fidelities. Knows no results."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, floor, log, log10, sqrt

from loratune.errors import BudgetError
from loratune.maths.laws import Prior, batch_size_law, learning_rate_law, rank_law, rate_by_examples
from loratune.values import HyperParameters, SearchContext, Stage, Trial
from loratune.values.tasks import PREFERENCE_RATE_SHARE

RATE_STEP = 3.0
"""Ratio of neighbouring learning rates in a bracket."""
BETA_STEP = 3.0
"""Ratio of neighbouring betas."""
ALPHA_RATIO = 2.0
ALPHA_RATIOS = (1.0, 1.5, 2.0, 3.0)
FEWEST_STEPS = 10
"""A batch size is tried only where it leaves at least this many optimiser steps."""
SCREENED_STEPS = 25
"""A trial on part of the rows has at least this many, or uses more rows: fewer say little about a schedule."""


def nearest(candidates: Sequence[int], value: float) -> int:
    """The candidate nearest in log space; of two equally near ones the larger."""
    return min(sorted(candidates, reverse=True), key=lambda candidate: abs(log(candidate / value)))


def rank_prior(context: SearchContext) -> Prior:
    """`rank_law` on the context's facts, times what other studies say."""
    law = rank_law(
        supervised_tokens=context.data.supervised_tokens,
        parameters_per_rank=context.model.parameters_per_rank,
        family=context.model.family,
        labels=context.data.labels,
        rows=context.data.rows,
        hidden_size=context.model.hidden_size,
    )
    value, low, high = (
        min(max(context.prior.rank_factor * end, 1.0), 512.0) for end in (law.value, law.low, law.high)
    )
    return replace(law, value=value, low=low, high=high)


def candidate_ranks(context: SearchContext) -> tuple[int, ...]:
    """The user's, or the powers of two up to the prior's upper end (at least 32, at most 256)."""
    if context.wishes.ranks:
        return tuple(sorted(set(context.wishes.ranks)))
    top = min(max(rank_prior(context).high, 32.0), 256.0, float(context.model.largest_rank))
    return tuple(2**power for power in range(9) if 2**power <= top) or (1,)


def largest_batch(context: SearchContext) -> int:
    """The largest batch that can be run: within memory and not more than the training rows."""
    return min(context.limits.largest_batch, context.data.rows)


def fitting_batches(context: SearchContext) -> tuple[int, ...]:
    """The user's batch sizes that can be run."""
    return tuple(size for size in context.wishes.batch_sizes if size <= largest_batch(context))


def base_batch(context: SearchContext) -> int:
    """The batch size at which ranks are compared: the law's, or the nearest of the user's that fits.

    Where a noise scale was measured the law's is moved into the range that this allows.
    """
    law = batch_size_law(rows=context.data.rows, epochs=context.wishes.epochs).value
    if context.prior.useful_batches is not None:
        low, high = context.prior.useful_batches
        law = min(max(law, low), high)
    if context.wishes.batch_sizes:
        return nearest(fitting_batches(context) or [min(context.wishes.batch_sizes)], law)
    return max(1, min(int(law), largest_batch(context)))


def other_batches(context: SearchContext, batch: int) -> tuple[int, ...]:
    """Alternatives to `batch` that can be run, nearest first: the user's, or what a noise scale allows."""
    candidates = set(context.wishes.batch_sizes or (batch * 2, batch // 2, batch * 4, batch // 4))
    if context.prior.useful_batches is not None and not context.wishes.batch_sizes:
        low, high = context.prior.useful_batches
        candidates = {size for size in candidates if low <= size <= high}
    steps = context.data.rows * context.wishes.epochs
    fitting = [
        size
        for size in candidates
        if size >= 1 and size != batch and size <= largest_batch(context) and steps / size >= FEWEST_STEPS
    ]
    return tuple(sorted(fitting, key=lambda size: (abs(log(size / batch)), -size)))


def alpha_of(context: SearchContext, r: int, ratio: float = ALPHA_RATIO) -> float:
    """The fixed alpha, or `ratio` times the rank."""
    return context.wishes.lora_alpha if context.wishes.lora_alpha is not None else ratio * r


def other_ratios(context: SearchContext) -> tuple[float, ...]:
    """Alternatives to alpha = 2r as multiples of the rank, the farthest first; none where alpha is fixed."""
    if context.wishes.lora_alpha is not None:
        return ()
    others = {ratio for ratio in context.wishes.alpha_ratios or ALPHA_RATIOS if ratio != ALPHA_RATIO}
    return tuple(sorted(others, key=lambda ratio: -abs(log(ratio / ALPHA_RATIO))))


def other_epochs(context: SearchContext) -> tuple[float, ...]:
    """The next candidate below the passes of all comparisons so far, and the next above."""
    below = [count for count in context.wishes.epoch_choices if count < context.wishes.epochs]
    above = [count for count in context.wishes.epoch_choices if count > context.wishes.epochs]
    return (*([max(below)] if below else []), *([min(above)] if above else []))


def rate_for_epochs(context: SearchContext, epochs: float) -> float:
    """Factor on the learning rate where a run sees the rows another number of times, by the law in examples."""
    return rate_by_examples(context.data.rows * epochs) / rate_by_examples(
        context.data.rows * context.wishes.epochs
    )


def usual_rate(context: SearchContext, r: int, batch: int, fraction: float = 1.0) -> float:
    """The expected learning rate for a run on `fraction` of the rows: the law's, or the context's own.

    LoRA+ starts at the law's rate over the root of its ratio, a convention: B moves faster and A slower than there.
    """
    if context.prior.flat_rate is not None:
        return context.prior.rate_factor * context.prior.flat_rate
    wanted = dict(context.wishes.variant)
    law = learning_rate_law(
        r=r,
        lora_alpha=alpha_of(context, r) * (sqrt(r) if wanted.get("use_rslora") else 1),
        batch_size=batch,
        rows=context.data.rows * fraction,
        epochs=context.wishes.epochs,
        hidden_size=context.model.hidden_size,
        family=context.model.family,
    )
    share = 1.0 if context.wishes.beta is None else PREFERENCE_RATE_SHARE
    return share * context.prior.rate_factor * law.value / sqrt(wanted.get("loraplus_lr_ratio", 1.0))


def hyper_parameters(context: SearchContext, *, r: int, rate: float, batch: int) -> HyperParameters:
    """The setting at the usual alpha, without dropout and weight decay."""
    return HyperParameters(
        r=r,
        lora_alpha=alpha_of(context, r),
        learning_rate=rate,
        batch_size=batch,
        epochs=context.wishes.epochs,
        warmup_ratio=context.wishes.warmup_ratio,
        target_modules=context.wishes.target_modules,
        beta=context.wishes.beta,
        **dict(context.wishes.variant),
    )


def other_betas(context: SearchContext) -> tuple[float, ...]:
    """Alternatives to the beta of all comparisons so far: the user's, or a third and three times; none without one."""
    beta = context.wishes.beta
    if beta is None:
        return ()
    found = context.wishes.betas or (two_digits(beta / BETA_STEP), two_digits(beta * BETA_STEP))
    return tuple(
        sorted((other for other in found if other != beta), key=lambda other: abs(log(other / beta)))
    )


def prior_setting(context: SearchContext) -> HyperParameters:
    """What the laws say before anything is trained, taken from the candidates."""
    r = nearest(candidate_ranks(context), rank_prior(context).value)
    batch = base_batch(context)
    rate = RateScale.of(context).window(usual_rate(context, r, batch), 1)[0]
    return hyper_parameters(context, r=r, rate=rate, batch=batch)


def search_seed(context: SearchContext) -> int:
    """The seed of the trials that choose learning rates."""
    return context.wishes.seed


def test_seeds(context: SearchContext, count: int) -> tuple[int, ...]:
    """Seeds of the trials that are compared: other than the seed that chose, as far as there are others."""
    if context.limits.seeds == 1:
        return (context.wishes.seed,)
    available = count if context.limits.seeds == 0 else min(count, context.limits.seeds - 1)
    return tuple(context.wishes.seed + 1 + index for index in range(available))


def screening_fraction(context: SearchContext, batch: int, affordable: float) -> float:
    """Share of the rows for trials that choose a learning rate where the budget does not pay for a bracket on all rows.

    A third of the `affordable` full runs each, but at least `SCREENED_STEPS` steps and a tenth of the rows; 1 where
    nothing smaller is of use.
    """
    steps = context.data.rows * context.wishes.epochs / batch
    fraction = max(affordable / 3, SCREENED_STEPS / steps, 0.1, context.limits.smallest_fraction)
    return 1.0 if fraction > 0.7 else round(fraction, 3)


def unit_cost(context: SearchContext, fraction: float = 1.0) -> float:
    """Cost of one trial alone on `fraction` of the rows, in the budget's unit."""
    return context.wave_cost([Trial(hyper_parameters=prior_setting(context), fraction=fraction)])


def two_digits(value: float) -> float:
    """Rounded to two significant digits, as people write learning rates."""
    return round(value, 1 - floor(log10(value)))


def stands_for(rate: float, published: float) -> bool:
    """Whether a learning rate lies within half a step, in logarithms, of one of `PUBLISHED_RATES`."""
    return abs(log(rate / published)) < log(2) / 2


@dataclass(frozen=True, kw_only=True, slots=True)
class RateScale:
    """The learning rates that may be tried: the user's list, or steps of a factor 3 that all ranks share.

    A common scale lets one learning rate be compared across ranks; a parabola finds what lies between.
    """

    given: tuple[float, ...]
    origin: float
    """One of the steps: the law's rate for the largest rank."""

    @classmethod
    def of(cls, context: SearchContext) -> "RateScale":
        largest = max(candidate_ranks(context))
        origin = usual_rate(context, largest, base_batch(context))
        return cls(given=tuple(sorted(set(context.wishes.learning_rates))), origin=origin)

    def window(self, centre: float, count: int) -> tuple[float, ...]:
        """`count` neighbouring rates around the centre, ascending; a single free one is the centre itself."""
        if not self.given:
            if count == 1:
                return (two_digits(centre),)
            first = round(self._place(centre) - (count - 1) / 2)
            return tuple(self._step(first + i) for i in range(count))
        count = min(count, len(self.given))
        start = min(
            range(len(self.given) - count + 1),
            key=lambda i: abs(log(self.given[i] * self.given[i + count - 1]) / 2 - log(centre)),
        )
        return self.given[start : start + count]

    def beyond(self, rate: float, direction: int) -> float | None:
        """The next rate below (-1) or above (+1); None at the end of the user's list."""
        if not self.given:
            return self._step(round(self._place(rate)) + direction)
        others = [other for other in self.given if (other - rate) * direction > 0]
        return min(others, key=lambda other: abs(other - rate)) if others else None

    def steps_between(self, low: float, high: float) -> float:
        """How many steps of the scale lie between two learning rates."""
        if not self.given:
            return abs(self._place(high) - self._place(low))
        low_index, high_index = (self.given.index(self.window(rate, 1)[0]) for rate in (low, high))
        return float(abs(high_index - low_index))

    def _place(self, rate: float) -> float:
        """Steps from the origin."""
        return log(rate / self.origin, RATE_STEP)

    def _step(self, place: int) -> float:
        return two_digits(self.origin * RATE_STEP**place)


def too_small(context: SearchContext, cost: float) -> BudgetError:
    """The error for a budget below the `cost` of the cheapest trial."""
    return BudgetError(
        f"The budget of {context.wishes.budget:.3g} full runs does not pay for one trial, "
        f"which costs {cost:.3g}; raise --budget to at least {ceil(100 * cost) / 100:g}x."
    )


def trial(setting: HyperParameters, seed: int, *, fraction: float = 1.0, stage: Stage = Stage.RANK) -> Trial:
    """A trial of one setting."""
    return Trial(hyper_parameters=setting, seed=seed, fraction=fraction, stage=stage)
