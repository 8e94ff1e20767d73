"""The first question: each rank at its own learning rate, tested from the largest downwards.

A low-fidelity result may discard a learning rate, never a rank. Knows nothing of later stages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, log2, sqrt

import numpy as np

from loratune.maths.noninferiority import Comparison, SeedNoise, Verdict, family_intervals
from loratune.maths.powerlaw import PowerLaw, fit_power_law
from loratune.maths.rankcurve import RankCurve, Reading
from loratune.search.bracket import Bracket, bracket
from loratune.search.compare import FULL, compare, finished, mean_loss, seed_noise
from loratune.search.effort import Effort
from loratune.search.procedure import Ledger, Procedure, Results, together
from loratune.search.space import (
    RateScale,
    base_batch,
    candidate_ranks,
    hyper_parameters,
    nearest,
    rank_prior,
    search_seed,
    test_seeds,
    trial,
    unit_cost,
    usual_rate,
)
from loratune.values import SearchContext, Trial

MORE_SEEDS = 2
"""Runs that a rank and the reference get between the first look and the second, which is the last."""
MOST_EXTENSIONS = 3
ONE_SIDED_Z, FAIR_Z = 1.645, 0.84
"""Normal quantiles of the test's level, and of the chance (20 %) from which a second look is worth its runs."""
SMALLEST_GAIN = 0.004
"""Expected gain for each full run, in the worth of an inferior rank, below which the search stops early."""
USUAL_NOISE = 0.01
"""Sd between seeds as a share of the loss, where little or nothing was repeated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One rank at its own learning rate."""

    r: int
    learning_rate: float
    bracket: Bracket | None
    """The learning rates compared at this rank; None where the law carried another rank's over."""
    results: Results
    """Finished runs on all rows at that learning rate; empty where there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankAnswer:
    """What the first question ended with."""

    chosen: Measured
    reference: Measured | None
    """The largest rank that was measured; None where ranks were not compared."""
    measured: tuple[Measured, ...]
    """Ascending by rank."""
    comparisons: tuple[tuple[int, Comparison], ...]
    """(rank, against the reference), from the largest downwards, as far as the test went."""
    settled: bool
    """Whether the chosen rank was shown adequate (or is the reference itself)."""
    unproven: Comparison | None
    """The chosen rank's comparison where it was taken without having been shown adequate."""
    intervals: Mapping[int, tuple[float, float] | None]
    """Of the rank taken and of the first that was not shown adequate, against the reference."""
    curve: RankCurve | None
    """How probably each rank is adequate; None where fewer than two ranks were measured."""
    law: PowerLaw | None
    noise: SeedNoise
    correction: float
    """Best learning rate at the first rank over the law's."""
    all_results: Results


def spread(candidates: Sequence[int], prior: int, count: int) -> tuple[int, ...]:
    """`count` of the candidates: the largest, the prior's, then those farthest (in log) from all taken."""
    taken = list(dict.fromkeys([max(candidates), prior]))[:count] if count > 1 else [prior]
    while len(taken) < min(count, len(candidates)):
        rest = [r for r in candidates if r not in taken]
        taken.append(max(rest, key=lambda r: (min(abs(log2(r / other)) for other in taken), r)))
    return tuple(sorted(taken))


def prior_rank(context: SearchContext) -> int:
    """The candidate nearest to the prior, but not the reference."""
    candidates = candidate_ranks(context)
    return nearest(candidates[:-1] or candidates, rank_prior(context).value)


class RankStage:
    """The procedure of the first question and its parts."""

    def __init__(self, context: SearchContext, effort: Effort, ledger: Ledger, reserve: float) -> None:
        self.context = context
        self.effort = effort
        self.ledger = ledger
        self.tuning = max(effort.tuned_rates - 1, 0) * unit_cost(context)
        """What the chosen rank's learning rate costs; one of those compared was measured before."""
        self.reserve = reserve + self.tuning
        """Full-run equivalents kept for later stages and for the chosen rank's learning rate."""
        self.batch = base_batch(context)
        self.scale = RateScale.of(context)
        self.prior = prior_rank(context)
        # A single bracket on all rows belongs to the reference: badly tuned, it would flatter the others.
        carried = effort.fraction == 1 and not effort.full_rates
        self.anchor = max(candidate_ranks(context)) if carried and effort.ranks > 1 else self.prior
        self.correction = 1.0
        self.anchored: Bracket | None = None
        self.measured: list[Measured] = []
        self.seen: list[Results] = []

    def run(self) -> Procedure[RankAnswer]:
        """Screens, measures, tests; then spends what is left on the ranks and seeds that matter."""
        self.anchored = yield from self._anchor()
        ranks = spread(candidate_ranks(self.context), self.prior, self.effort.ranks)
        if self.effort.ranks > 2:  # the others are chosen by what these two say
            ranks = spread(candidate_ranks(self.context), self.prior, 2)
        order = sorted(ranks, key=lambda r: (r != max(ranks), r != self.prior, -r))
        self.measured = list((yield from together([self._measure(r) for r in order])))
        yield from self._explore(planned=self.effort.ranks - len(self.measured))
        return (yield from self._settle())

    def resume(self, answer: RankAnswer, reserve: float) -> Procedure[RankAnswer]:
        """Goes on with what later stages have left of the budget, after `answer`.

        Another rank whose learning rate the rest does not pay to tune takes over only if it measured as good.
        """
        self.reserve = reserve
        again = yield from self._settle()
        before = answer.chosen
        level = mean_loss(self.context, before.results) + self.context.margin
        untuned = self.tuning and again.chosen in self.measured
        if again.chosen.r == before.r or (untuned and mean_loss(self.context, again.chosen.results) > level):
            return replace(self._answer(self.measured, before.r), chosen=before)
        return again

    def _settle(self) -> Procedure[RankAnswer]:
        """The test and what the choice still hinges on, then the chosen rank's learning rate."""
        yield from self._prove()
        yield from self._explore(planned=0)  # the noise is better known now
        answer = self._answer(self.measured)
        chosen = yield from self._tuned(answer.chosen)
        return replace(answer, chosen=chosen, all_results=self._all_results)

    def _collect(self, procedure: Procedure[Bracket]) -> Procedure[Bracket]:
        found = yield from procedure
        self.seen.append(found.results)
        return found

    def _trial(self, r: int, rate: float, seed: int, fraction: float = 1.0) -> Trial:
        setting = hyper_parameters(self.context, r=r, rate=rate, batch=self.batch)
        return trial(setting, seed, fraction=fraction)

    def _bracket(self, r: int, count: int, fraction: float) -> Procedure[Bracket]:
        seed = search_seed(self.context)
        return self._collect(
            bracket(
                lambda rate: self._trial(r, rate, seed, fraction),
                scale=self.scale,
                centre=self.correction * usual_rate(self.context, r, self.batch, fraction),
                count=count,
                extensions=MOST_EXTENSIONS,
                refine=self.context.seeds != 1,
            )
        )

    def _anchor(self) -> Procedure[Bracket | None]:
        """Corrects the law's level at one rank."""
        if self.effort.anchor_rates == 0:
            return None
        fraction = self.effort.fraction
        found = yield from self._bracket(self.anchor, self.effort.anchor_rates, fraction)
        if found.results:
            self.correction = found.best / usual_rate(self.context, self.anchor, self.batch, fraction)
        return found

    def _measure(self, r: int) -> Procedure[Measured]:
        """One rank: its learning rate, then runs with seeds that did not choose it."""
        effort = self.effort
        found = self.anchored if r == self.anchor else None
        if found is None and effort.screened_rates and effort.fraction < 1:
            found = yield from self._bracket(r, effort.screened_rates, effort.fraction)
        on_all_rows = effort.fraction == 1
        rate = self.correction * usual_rate(self.context, r, self.batch)
        if found is not None and found.results:
            law = usual_rate(self.context, r, self.batch) / usual_rate(
                self.context, r, self.batch, effort.fraction
            )
            rate = found.best * law
        if effort.full_rates:
            found = yield from self._bracket(r, effort.full_rates, 1.0)
            on_all_rows, rate = True, found.best
        if not (found is not None and on_all_rows):
            rate = self.scale.window(rate, 1)[0]
        seeds = test_seeds(self.context, effort.seeds)
        results = yield tuple(self._trial(r, rate, seed) for seed in seeds)
        self.seen.append(results)
        kept = finished(self.context, results)
        if not kept and found is not None and on_all_rows:
            kept = finished(self.context, found.at_best_tried())
            rate = kept[0].asked.hyper_parameters.learning_rate if kept else rate
        return Measured(r=r, learning_rate=rate, bracket=found, results=kept)

    def _tuned(self, chosen: Measured) -> Procedure[Measured]:
        """The chosen rank with its learning rate compared on all rows, if that was not done and the budget allows.

        With the neighbours of the rate that was measured, at a seed for which that run is there already. What the
        test said of the rank stays: a better learning rate only makes it more adequate.
        """
        if not (self.effort.tuned_rates and chosen.results) or self.tuning > self.ledger.left:
            return chosen
        seed = test_seeds(self.context, 1)[0]
        tuned = yield from self._collect(
            bracket(
                lambda rate: self._trial(chosen.r, rate, seed),
                scale=replace(self.scale, origin=chosen.learning_rate),
                centre=chosen.learning_rate,
                count=self.effort.tuned_rates,
                extensions=1,
                refine=self.context.seeds != 1,
            )
        )
        best = finished(self.context, tuned.at_best_tried())
        if not best:
            return chosen
        if best[0].trial.hyper_parameters == chosen.results[0].trial.hyper_parameters:
            return replace(chosen, bracket=tuned)
        return Measured(r=chosen.r, learning_rate=tuned.best, bracket=tuned, results=best)

    @property
    def _all_results(self) -> Results:
        return tuple(result for results in self.seen for result in results)

    def _noise(self) -> SeedNoise:
        return seed_noise(self.context, self._all_results)

    def _law(self, measured: Sequence[Measured]) -> PowerLaw | None:
        known = [m for m in measured if m.results]
        if not known:
            return None
        runs = [self._runs(m) for m in known]
        noise = self._noise()
        errors = None
        if noise.known and noise.variance > 0:
            errors = [sqrt(noise.variance / len(own)) for own in runs]
        losses = [mean_loss(self.context, own) for own in runs]
        return fit_power_law([m.r for m in known], losses, errors)

    def _runs(self, m: Measured) -> Results:
        """All runs of a rank on all rows at its learning rate, the one that chose it included.

        Good for a curve through all ranks, which share that bias; the test leaves the choosing runs out.
        """
        choosing = m.bracket.at_best_tried() if m.bracket is not None else ()
        on_all_rows = [result for result in choosing if result.trial.fraction >= FULL]
        return finished(self.context, (*m.results, *on_all_rows))

    def _curve(self, measured: Sequence[Measured]) -> RankCurve | None:
        """The posterior of the rank curve, from all runs on all rows at each rank's learning rate."""
        known = sorted((m for m in measured if m.results), key=lambda m: -m.r)
        if len(known) < 2:
            return None
        readings = []
        for m in known:
            variance = self._guessed_variance(known[0]) / len(self._runs(m))
            if m is not known[0]:  # the rows' share, which more seeds do not shrink
                still = SeedNoise(variance=0.0, degrees=inf)
                variance += compare(self.context, m.results, known[0].results, still).standard_error ** 2
            readings.append(Reading(m.r, mean_loss(self.context, self._runs(m)), variance))
        candidates = [r for r in candidate_ranks(self.context) if r <= known[0].r]
        return RankCurve(tuple(candidates), self.context.margin, tuple(readings))

    def _guessed_variance(self, reference: Measured) -> float:
        """Of one run from seed to seed: the measured one with a guess that counts as one degree of freedom."""
        noise = self._noise()
        if noise.degrees == inf:
            return noise.variance
        guess = (USUAL_NOISE * mean_loss(self.context, reference.results)) ** 2
        return (noise.degrees * noise.variance + guess) / (noise.degrees + 1)

    def _explore(self, planned: int) -> Procedure[None]:
        """Measures another rank, or repeats one and the reference: whichever the choice should gain most from.

        `planned` further ranks in any case; then while the budget lasts and the expected gain for each run is
        at least `SMALLEST_GAIN`.
        """
        measured = self.measured
        while True:
            curve = self._curve(measured)
            if curve is None:
                return
            room = self.ledger.left - self.reserve
            options = self._options(measured, curve)
            if planned > 0:
                options = [option for option in options if isinstance(option[1], int)]
            else:
                options = [(gain, m, cost) for gain, m, cost in options if gain >= SMALLEST_GAIN * cost]
                options = [option for option in options if option[2] <= room]
            if not options:
                return
            _, m, _ = max(options, key=lambda option: option[0] / option[2])
            planned -= 1
            if isinstance(m, int):
                measured.append((yield from self._measure(m)))
            elif not (yield from self._repeat(m)):
                return

    def _options(
        self, measured: Sequence[Measured], curve: RankCurve
    ) -> list[tuple[float, "int | Measured", float]]:
        """(expected gain, rank to measure or to repeat, cost in full runs)."""
        effort, unit = self.effort, unit_cost(self.context)
        allowed = [m.r for m in measured if m.results]
        known = {m.r for m in measured}
        typical = float(np.mean([reading.variance for reading in curve.readings]))
        screened = effort.screened_rates * unit_cost(self.context, effort.fraction)
        each = max(effort.full_rates + effort.seeds, 1) * unit + screened
        found: list[tuple[float, int | Measured, float]] = [
            (curve.gain(r, typical, allowed), r, each) for r in curve.candidates if r not in known
        ]
        more = self._last_look - effort.seeds
        reference = max((m for m in measured if m.results), key=lambda m: m.r)
        for m in measured:
            if m is reference or not m.results or more <= 0 or self._repeated(m):
                continue
            variance = self._guessed_variance(reference) / more
            cost = more * unit * (1 if self._repeated(reference) else 2)
            found.append((curve.gain(m.r, variance, allowed), m, cost))
        return found

    @property
    def _last_look(self) -> int:
        """Runs with test seeds that a rank has at the second look."""
        return len(self._repeating_seeds)

    @property
    def _repeating_seeds(self) -> tuple[int, ...]:
        """The test seeds; where there is a single one, also the one that screened rates, on part of the rows only."""
        seeds = test_seeds(self.context, self.effort.seeds + MORE_SEEDS)
        spare = self.context.seeds == 2 and self.effort.fraction < 1 and not self.effort.full_rates
        return (*seeds, search_seed(self.context)) if spare else seeds

    def _repeated(self, m: Measured) -> bool:
        return len(m.results) > self.effort.seeds

    def _repeat(self, m: Measured) -> Procedure[bool]:
        """Brings a rank and the reference to the second look; whether there was anything new."""
        measured = self.measured
        reference = max((m for m in measured if m.results), key=lambda m: m.r)
        wanted = [
            self._trial(each.r, each.learning_rate, seed)
            for each in (reference, m)
            for seed in self._repeating_seeds
        ]
        results = yield tuple(wanted)
        self.seen.append(results)
        before = sum(len(each.results) for each in measured)
        for index, each in enumerate(measured):
            own = tuple(x for x in results if x.asked.hyper_parameters.r == each.r)
            measured[index] = replace(each, results=finished(self.context, (*each.results, *own)))
        return sum(len(each.results) for each in measured) > before

    def _prove(self) -> Procedure[None]:
        """Repeats the first rank that the test leaves undecided, while the budget lasts and it could be shown."""
        measured = self.measured
        while True:
            reference, comparisons = self._test(measured)
            if reference is None or not comparisons or self.effort.seeds == 0:
                return
            r, comparison = comparisons[-1]
            m = next(m for m in measured if m.r == r)
            more = self._last_look - self.effort.seeds
            cost = more * unit_cost(self.context) * (1 if self._repeated(reference) else 2)
            if comparison.verdict is not Verdict.UNDECIDED or self._repeated(m) or more <= 0:
                return
            if cost > self.ledger.left - self.reserve or not self._provable(measured, m, comparison):
                return
            if not (yield from self._repeat(m)):
                return

    def _provable(self, measured: Sequence[Measured], m: Measured, comparison: Comparison) -> bool:
        """Whether the second look has a fair chance to show the rank adequate, by its difference so far."""
        curve = self._curve(measured)
        if not comparison.seeds_measured or curve is None:
            return True
        now, later = self.effort.seeds, self._last_look
        seeds = 2 * self._noise().variance
        error = sqrt(max(comparison.standard_error**2 - seeds / now + seeds / later, 0.0))
        return comparison.difference + ONE_SIDED_Z * error <= comparison.margin + FAIR_Z * error

    def _test(
        self, measured: Sequence[Measured]
    ) -> tuple[Measured | None, tuple[tuple[int, Comparison], ...]]:
        """The paired test from the largest rank downwards, to the first that is not adequate."""
        known = sorted((m for m in measured if m.results), key=lambda m: -m.r)
        if len(known) < 2:
            return (known[0] if known else None), ()
        comparisons = []
        for m in known[1:]:
            comparison = self._compare(m, known[0])
            comparisons.append((m.r, comparison))
            if comparison.verdict is not Verdict.ADEQUATE:
                break
        return known[0], tuple(comparisons)

    def _compare(self, m: Measured, reference: Measured) -> Comparison:
        """At the last look that both ranks have reached; a decision of the first look stands."""
        noise, first, last = self._noise(), self.effort.seeds, self._last_look
        early = compare(self.context, m.results[:first], reference.results[:first], noise)
        if last <= first:
            return early
        early = early.at_first_look(first / last)
        if early.verdict is not Verdict.UNDECIDED or not (self._repeated(m) and self._repeated(reference)):
            return early
        late = compare(self.context, m.results, reference.results, noise)
        return late.after(early)

    def _answer(self, measured: Sequence[Measured], kept: int | None = None) -> RankAnswer:
        """With the rank that has the smallest expected loss, or `kept`, where that was decided before."""
        reference, comparisons = self._test(measured)
        curve = self._curve(measured)
        by_rank = {m.r: m for m in measured}
        unproven = None
        if reference is None:
            chosen = by_rank.get(self.prior, measured[0])
        else:
            largest = min((r for r, c in comparisons if c.verdict is Verdict.ADEQUATE), default=reference.r)
            if kept is None:
                allowed = self._not_inferior(measured, reference, largest)
                kept = largest if curve is None else curve.choice(allowed)
            chosen = by_rank[kept]
            if kept < largest:
                unproven = self._compare(chosen, reference)
        return RankAnswer(
            chosen=chosen,
            reference=reference,
            measured=tuple(sorted(measured, key=lambda m: m.r)),
            comparisons=comparisons,
            settled=unproven is None and bool(comparisons),
            unproven=unproven,
            intervals=_intervals(chosen.r, comparisons, unproven),
            curve=curve,
            law=self._law(measured),
            noise=self._noise(),
            correction=self.correction,
            all_results=self._all_results,
        )

    def _not_inferior(
        self, measured: Sequence[Measured], reference: Measured, largest: int
    ) -> tuple[int, ...]:
        """`largest`, and the ranks below it down to the first that is shown inferior."""
        found = [largest]
        for m in sorted((m for m in measured if m.results and m.r < largest), key=lambda m: -m.r):
            if self._compare(m, reference).verdict is Verdict.INFERIOR:
                break
            found.append(m.r)
        return tuple(found)


def _intervals(
    chosen: int, comparisons: Sequence[tuple[int, Comparison]], unproven: Comparison | None
) -> dict[int, tuple[float, float] | None]:
    """Of what the decision rests on. The ranks between have their one-sided bounds, which the test is about."""
    told = {r: c for r, c in comparisons if r == chosen or c.verdict is not Verdict.ADEQUATE}
    if unproven is not None:
        told[chosen] = unproven
    return dict(zip(told, family_intervals(list(told.values())), strict=True))
