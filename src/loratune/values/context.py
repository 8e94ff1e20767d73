"""What a strategy knows before it starts; nothing in here changes during a search."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from math import ceil
from typing import TYPE_CHECKING, Any, Self

from loratune.values.hyperparameters import ALL_LINEAR, HyperParameters, default_recipe
from loratune.values.trial import Trial

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


Load = tuple[int, float]
"""A trial as (optimiser steps, tokens of each)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """Turns measured steps into the seconds of a wave: of trials that are asked for together."""

    steps: tuple[tuple[float, float], ...]
    """(tokens of a step, its seconds), at least one, tokens ascending; a step of no token may be the first."""
    forward: float
    """Evaluated tokens per second."""
    slots: int
    """Trials that train side by side, at most."""

    def step(self, tokens: float) -> float:
        """Seconds of a step of `tokens` tokens in flight.

        Straight between the points and from the origin to a first point that is not of no token; beyond the last
        one in proportion to the tokens, as a larger step is cut into equal ones.
        """
        points = self.steps
        (last, slowest) = points[-1]
        if tokens >= last:
            return slowest * tokens / last if last else slowest
        after = bisect_right(points, tokens, key=lambda point: point[0])
        low, start = points[after - 1] if after else (0.0, 0.0)
        high, end = points[after]
        return start + (end - start) * (tokens - low) / (high - low)

    def wave(self, loads: Iterable[Load], evaluated: float = 0.0) -> float:
        """Seconds until all of these trials have ended; `evaluated` are the tokens of their evaluations, in all.

        The longest begin, `slots` side by side; the next ones follow when these have ended.
        """
        order = sorted(Counter(loads).items(), reverse=True)
        seconds, pack, free = 0.0, list[tuple[Load, int]](), self.slots
        for load, count in order:
            while count:
                taken = min(count, free)
                pack.append((load, taken))
                count, free = count - taken, free - taken
                if not free:
                    seconds, pack, free = seconds + self._pack(pack), [], self.slots
        seconds += self._pack(pack) if pack else 0.0
        return seconds + evaluated / self.forward

    def _pack(self, pack: Sequence[tuple[Load, int]]) -> float:
        """Seconds of ((steps, tokens), trials), steps descending: stretch by stretch, to the next end of a trial."""
        seconds, tokens = 0.0, 0.0
        ends = [load[0] for load, _ in pack[1:]] + [0]
        for ((steps, each), count), end in zip(pack, ends, strict=True):
            tokens += count * each
            seconds += (steps - end) * self.step(tokens) if steps > end else 0.0
        return seconds


def optimiser_steps(rows: int, batch_size: int, epochs: float, fraction: float = 1.0) -> int:
    """Steps of a run on a share of the rows, as transformers' Trainer counts them: a part of an epoch is rounded up."""
    used = ceil(round(fraction * rows, 9))
    return max(1, ceil(round(epochs * ceil(used / batch_size), 9)))


NLL_MARGIN = 0.005
"""Nats per supervised token that a cheaper choice may lose where the user names no margin."""
PASSES_PER_LABELLING = 2.0
"""Tokens of scoring every label, as a multiple of the rows' own, where there are up to hundreds."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DataFacts:
    """What the rows are."""

    rows: int
    """Training rows."""
    tokens: int
    """Tokens of one pass over the training rows."""
    supervised_tokens: int
    """Supervised tokens of one pass over the training rows."""
    validation_tokens: int = 0
    """Tokens of one evaluation over all validation rows."""
    validation_weights: npt.NDArray[np.float64] | None = None
    """[validation rows] supervised tokens of each row; None in a simulated run without per-example values."""
    validation_labels: npt.NDArray[Any] | None = None
    """[validation rows] index of the true label, for labelled data; of a classifier as `metrics.Rows.labels`."""
    labels: int = 0
    """Number of classes; 0 where the data is not labelled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts:
    """What the base model is."""

    hidden_size: int = 0
    family: str = ""
    """transformers' `model_type`."""
    parameters_per_rank: int = 0
    """LoRA parameters at rank 1 over the default targets: Σ (in + out)."""
    largest_rank: int = 1024
    """The smallest dimension of a targeted layer."""
    targets: tuple[tuple[str, int, int], ...] = ()
    """(full name, in, out) of every layer that can be adapted; empty where the search cannot choose layers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PriorKnowledge:
    """What is known from elsewhere: other studies, or a measurement before the search."""

    flat_rate: float | None = None
    """One learning rate that is expected to be best for every rank, in place of the law; None: the law."""
    rank_factor: float = 1.0
    """What the expected rank is multiplied by, such as what other studies needed over the law's."""
    rate_factor: float = 1.0
    """What the expected learning rate is multiplied by, such as another study's optimum over the law's."""
    useful_batches: tuple[float, float] | None = None
    """Batch sizes worth trying, by a measured gradient noise scale; None: not measured."""
    carried: HyperParameters | None = None
    """Found on a smaller model of the family: only its learning rate is measured again; None: all is searched."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialCosts:
    """What trials cost on this device."""

    pace: Pace | None = None
    """Seconds of trials side by side; None: time is in proportion to tokens, width gains nothing."""
    evaluation_passes: float = 1.0
    """Passes over the validation rows at a trial's end, by what the metric needs."""
    labelling_passes: float = PASSES_PER_LABELLING
    """Tokens of finding every row's label, as a multiple of the rows' own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunLimits:
    """What can be run."""

    largest_batch: int = 1024
    """What fits in memory, by the memory model."""
    smallest_fraction: float = 0.0
    """The smallest share of the training rows that a trial may be asked to use."""
    seeds: int = 0
    """How many different seeds can be had; 0: any number."""
    seed_sd: float | None = None
    """Assumed sd of a run's NLL from seed to seed, in nats, where the search cannot repeat runs; else None."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wishes:
    """What the user asks for."""

    epochs: float = 1.0
    """Passes over the rows of the runs that compare ranks."""
    epoch_choices: tuple[float, ...] = ()
    """Candidates of the number of passes; empty: the user's is kept."""
    warmup_ratio: float = 0.05
    target_modules: tuple[str, ...] = ALL_LINEAR
    ranks: tuple[int, ...] = ()
    """Candidates in ascending order; empty: the strategy chooses."""
    learning_rates: tuple[float, ...] = ()
    batch_sizes: tuple[int, ...] = ()
    lora_alpha: float | None = None
    """A fixed alpha for all ranks; None: 2r while ranks are compared, then searched."""
    alpha_ratios: tuple[float, ...] = ()
    """Candidates of lora_alpha / r, 2 among them; empty: 1, 1.5, 2 and 3."""
    metric: str = "nll"
    """Its name in the registry (`loratune.metrics`)."""
    margin: float = NLL_MARGIN
    """Margin in the metric's unit: nats per supervised token, points (hundredths), or its own."""
    seed: int = 0
    budget: float = 5.0
    """What the search may cost before the final run, in final runs alone on this device (`wave_cost`)."""
    regularise: bool = False
    """Search dropout and weight decay even without signs of over-fitting."""
    beta: float | None = None
    """Beta that all else is compared at, where the objective has one; None: it has none."""
    betas: tuple[float, ...] = ()
    """Candidates beside it; empty: a third and three times as much."""
    tune_targets: bool = False
    """Compare which layers are adapted, at equal adapter parameters."""
    tune_variants: tuple[str, ...] = ()
    """Variants of LoRA, by their names in `VARIANTS`, that are compared with the setting found."""
    variant: tuple[tuple[str, Any], ...] = ()
    """(field of `HyperParameters`, value) of every trial: what makes adapters something else than plain LoRA."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SearchContext:
    """Facts, knowledge, costs, limits and wishes."""

    data: DataFacts
    model: ModelFacts = ModelFacts()
    prior: PriorKnowledge = PriorKnowledge()
    costs: TrialCosts = TrialCosts()
    limits: RunLimits = RunLimits()
    wishes: Wishes = Wishes()

    def changed(self, **values: Any) -> Self:
        """The context with other values of the parts' fields, by name: `context.changed(budget=8.0, rows=400)`.

        Raises `TypeError` for a name that no part has.
        """
        parts = {}
        for part in fields(self):
            own = getattr(self, part.name)
            names = {field.name for field in fields(own)} & values.keys()
            if names:
                parts[part.name] = replace(own, **{name: values.pop(name) for name in names})
        if values:
            raise TypeError(f"no part of a SearchContext has {', '.join(values)}")
        return replace(self, **parts)

    def cost(self, trial: Trial) -> float:
        """Cost in full-run equivalents: 1 is a full pass over all rows for `epochs`, with its evaluation.

        A frozen base needs no weight gradients, so a forward pass is half of a training pass
        (2 against 4 FLOP per parameter and token).
        """
        training = trial.fraction * trial.hyper_parameters.epochs * self.data.tokens
        return (training + self._evaluation) / self.full_run if self.full_run else 0.0

    def load(self, trial: Trial) -> Load:
        """(optimiser steps, tokens of each)."""
        chosen = trial.hyper_parameters
        steps = optimiser_steps(self.data.rows, chosen.batch_size, chosen.epochs, trial.fraction)
        return steps, trial.fraction * chosen.epochs * self.data.tokens / steps

    def seconds(self, trials: Sequence[Trial]) -> float:
        """Seconds of trials that are asked for together, their evaluations included. Needs a `pace`."""
        assert self.costs.pace is not None
        evaluated = len(trials) * self.costs.evaluation_passes * self.data.validation_tokens
        return self.costs.pace.wave(map(self.load, trials), evaluated)

    def wave_cost(self, trials: Sequence[Trial]) -> float:
        """What trials that are asked for together take, in runs of the default recipe alone on this device.

        Without a pace that is the sum of their costs.
        """
        if self.costs.pace is None:
            return sum(map(self.cost, trials))
        alone = self.seconds_alone
        return self.seconds(trials) / alone if alone else 0.0

    @property
    def seconds_alone(self) -> float:
        """Seconds of one run of the default recipe alone on this device: what `x` means in a budget. Needs a `pace`."""
        return self.seconds(
            [Trial(hyper_parameters=default_recipe(self.wishes.epochs, self.wishes.warmup_ratio))]
        )

    @property
    def full_run(self) -> float:
        """What 1 in cost stands for, in trained tokens."""
        return self.wishes.epochs * self.data.tokens + self._evaluation

    @property
    def _evaluation(self) -> float:
        """One evaluation at a trial's end, in trained tokens, finding labels included."""
        return 0.5 * self.costs.evaluation_passes * self.data.validation_tokens
