"""The first question: each rank at its own learning rate, tested from the largest downwards.

A low-fidelity result may discard a learning rate, never a rank. Knows nothing of later stages.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite, log2, sqrt

from loratune.maths.noninferiority import Comparison, SeedNoise, Verdict
from loratune.maths.powerlaw import PowerLaw, fit_power_law
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

MOST_SEEDS = 5
"""Runs of one setting, at most, when a comparison stays undecided."""
MOST_EXTENSIONS = 3
MOST_EXTRA_RANKS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One rank at its own learning rate."""

    r: int
    learning_rate: float
    bracket: Bracket | None
    """The learning rates compared at this rank; None where the law carried another rank's over."""
    results: Results
    """Finished runs on all rows at that learning rate; empty where there is none."""


class Rule(StrEnum):
    """Why a rank may be taken that the test leaves undecided."""

    MEASURED = "measured at least as good"
    LAW = "expected within the margin by the power law"


@dataclass(frozen=True, kw_only=True, slots=True)
class Unproven:
    """A rank taken without having been shown adequate."""

    r: int
    comparison: Comparison
    rule: Rule


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
    unproven: Unproven | None
    """On what the chosen rank rests where it was not shown adequate and is not the reference."""
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
        self.reserve = reserve
        """Full-run equivalents kept for later stages."""
        self.batch = base_batch(context)
        self.scale = RateScale.of(context)
        self.prior = prior_rank(context)
        # A single bracket on all rows belongs to the reference: badly tuned, it would flatter the others.
        carried = effort.fraction == 1 and not effort.full_rates
        self.anchor = max(candidate_ranks(context)) if carried and effort.ranks > 1 else self.prior
        self.correction = 1.0
        self.seen: list[Results] = []

    def run(self) -> Procedure[RankAnswer]:
        """Screens, measures, tests; then spends what is left on the ranks and seeds that matter."""
        anchored = yield from self._anchor()
        ranks = spread(candidate_ranks(self.context), self.prior, self.effort.ranks)
        if self.effort.ranks > 2:  # the last one is chosen by the power law through the others
            ranks = spread(candidate_ranks(self.context), self.prior, self.effort.ranks - 1)
        order = sorted(ranks, key=lambda r: (r != max(ranks), r != self.prior, -r))
        measured = list((yield from together([self._measure(r, anchored) for r in order])))
        yield from self._refine(measured, anchored, planned=self.effort.ranks - len(measured))
        yield from self._more_seeds(measured)
        yield from self._refine(measured, anchored, planned=0)
        return self._answer(measured)

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

    def _measure(self, r: int, anchored: Bracket | None) -> Procedure[Measured]:
        """One rank: its learning rate, then runs with seeds that did not choose it."""
        effort = self.effort
        found = anchored if r == self.anchor else None
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

    def _noise(self) -> SeedNoise:
        return seed_noise(self.context, [result for results in self.seen for result in results])

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

    def _refine(self, measured: list[Measured], anchored: Bracket | None, planned: int) -> Procedure[None]:
        """Measures further ranks: the one the power law calls the smallest adequate, else its neighbours.

        `planned` ranks in any case; then, while the budget lasts, up to `MOST_EXTRA_RANKS` more if they are
        the law's choice or the test is still undecided.
        """
        each = unit_cost(self.context) * max(self.effort.full_rates + self.effort.seeds, 1)
        for index in range(planned + MOST_EXTRA_RANKS):
            law = self._law(measured)
            if law is None or len(measured) < 2:
                return
            if index >= planned and self.ledger.left - self.reserve < each:
                return
            _, comparisons = self._test(measured)
            undecided = any(c.verdict is Verdict.UNDECIDED for _, c in comparisons)
            wanted = self._next_rank(measured, law, fill=index < planned or undecided)
            if wanted is None:
                return
            measured.append((yield from self._measure(wanted, anchored)))

    def _next_rank(self, measured: Sequence[Measured], law: PowerLaw, *, fill: bool) -> int | None:
        known = {m.r for m in measured}
        pool = [r for r in candidate_ranks(self.context) if r <= max(known)]
        target = law.smallest_within(pool, self.context.margin)
        rest = [r for r in pool if r not in known]
        if target in rest:
            return target
        return nearest(rest, target) if fill and rest else None

    def _more_seeds(self, measured: list[Measured]) -> Procedure[None]:
        """Runs the reference and the first undecided rank with further seeds while the budget lasts."""
        each = unit_cost(self.context)
        while True:
            reference, comparisons = self._test(measured)
            undecided = [m for m in measured for r, c in comparisons if m.r == r and _open(c)]
            if reference is None or not undecided or self.effort.seeds == 0:
                return
            pair = [m for m in (reference, undecided[0]) if len(m.results) < MOST_SEEDS]
            if not pair or self.ledger.left - self.reserve < each * len(pair):
                return
            before = sum(len(m.results) for m in measured)
            wanted = [
                self._trial(m.r, m.learning_rate, seed)
                for m in pair
                for seed in test_seeds(self.context, len(m.results) + 1)
            ]
            results = yield tuple(wanted)
            self.seen.append(results)
            for index, m in enumerate(measured):
                own = tuple(x for x in results if x.asked.hyper_parameters.r == m.r)
                if m in pair:
                    kept = finished(self.context, (*m.results, *own))
                    measured[index] = Measured(
                        r=m.r, learning_rate=m.learning_rate, bracket=m.bracket, results=kept
                    )
            if sum(len(m.results) for m in measured) == before:
                return

    def _test(
        self, measured: Sequence[Measured]
    ) -> tuple[Measured | None, tuple[tuple[int, Comparison], ...]]:
        """The paired test from the largest rank downwards, to the first that is not adequate."""
        known = sorted((m for m in measured if m.results), key=lambda m: -m.r)
        if len(known) < 2:
            return (known[0] if known else None), ()
        noise, comparisons = self._noise(), []
        for m in known[1:]:
            comparison = compare(self.context, m.results, known[0].results, noise)
            comparisons.append((m.r, comparison))
            if comparison.verdict is not Verdict.ADEQUATE:
                break
        return known[0], tuple(comparisons)

    def _answer(self, measured: Sequence[Measured]) -> RankAnswer:
        reference, comparisons = self._test(measured)
        law = self._law(measured)
        by_rank = {m.r: m for m in measured}
        adequate = [r for r, c in comparisons if c.verdict is Verdict.ADEQUATE]
        unproven = None
        if reference is None:
            chosen = by_rank.get(self.prior, measured[0])
        else:
            chosen = by_rank[min(adequate)] if adequate else reference
            if comparisons and comparisons[-1][1].verdict is Verdict.UNDECIDED and law is not None:
                unproven = self._smallest_not_inferior(measured, reference, law, chosen.r)
                chosen = by_rank[unproven.r] if unproven else chosen
        return RankAnswer(
            chosen=chosen,
            reference=reference,
            measured=tuple(sorted(measured, key=lambda m: m.r)),
            comparisons=comparisons,
            settled=unproven is None and bool(comparisons),
            unproven=unproven,
            law=law,
            noise=self._noise(),
            correction=self.correction,
            all_results=tuple(result for results in self.seen for result in results),
        )

    def _smallest_not_inferior(
        self, measured: Sequence[Measured], reference: Measured, law: PowerLaw, chosen: int
    ) -> Unproven | None:
        """The smallest rank below `chosen` that either rule takes, with none shown inferior above it."""
        noise, smallest = self._noise(), None
        for m in sorted((m for m in measured if m.results and m.r < chosen), key=lambda m: -m.r):
            comparison = compare(self.context, m.results, reference.results, noise)
            if comparison.verdict is Verdict.INFERIOR:
                break
            expected = law.excess(m.r, reference.r)
            if comparison.difference <= 0:
                smallest = Unproven(r=m.r, comparison=comparison, rule=Rule.MEASURED)
            elif isfinite(expected) and expected <= self.context.margin:
                smallest = Unproven(r=m.r, comparison=comparison, rule=Rule.LAW)
        return smallest


def _open(comparison: Comparison) -> bool:
    return comparison.verdict is Verdict.UNDECIDED and comparison.seeds_measured
