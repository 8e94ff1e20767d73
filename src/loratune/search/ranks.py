"""The first question: each rank at its own learning rate, on all rows, the largest first.

What is needed next is a list in order of urgency. Where width is nearly free a request holds all of it, elsewhere
the first item (`waves`). Knows nothing of later stages.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import log2

from loratune.maths.curves import PowerLaw, fit_power_law
from loratune.maths.noninferiority import Comparison, SeedNoise, Verdict, family_intervals
from loratune.search.compare import compare, finished, mean_loss, seed_noise
from loratune.search.effort import Effort
from loratune.search.field import Cell, Field
from loratune.search.procedure import Ledger, Procedure, Results
from loratune.search.rank_answer import Measured, RankAnswer
from loratune.search.rank_choice import adequate, choice
from loratune.search.space import (
    RateScale,
    base_batch,
    candidate_ranks,
    fitting_batches,
    hyper_parameters,
    largest_batch,
    nearest,
    rank_prior,
    search_seed,
    stands_for,
    test_seeds,
    trial,
    two_digits,
    usual_rate,
)
from loratune.search.waves import wave
from loratune.values import SearchContext, Stage, Trial, TrialResult
from loratune.values.hyperparameters import PUBLISHED_RATES, default_recipe

STEP_DOWN = 4
"""Ratio of one rank to the next lower one."""
MOST_RATES = 7
"""Learning rates of a rank, at most, on the way to a worse one on both sides."""
WORTH = 0.1
"""Margins that a rate between those tried is expected to gain, at least, where it is run."""
NEAR = 3.0
"""Margins above the best within which a rank is still in question."""


class RankStage:
    """The procedure of the first question and its parts."""

    def __init__(self, context: SearchContext, effort: Effort, ledger: Ledger) -> None:
        self.context, self.effort, self.ledger = context, effort, ledger
        self.batch = base_batch(context)
        self.scale = RateScale.of(context)
        self.candidates = candidate_ranks(context)
        self.largest = self.candidates[-1]
        self.results: list[TrialResult] = []
        self.asked: set[str] = set()
        self.proving = True

    def first(self) -> tuple[Trial, ...]:
        """The first request."""
        if self.effort.fraction < 1:
            r = nearest(self.candidates, rank_prior(self.context).value)
            centre = usual_rate(self.context, r, self.batch, self.effort.fraction)
            rates = self.scale.window(centre, self.effort.rates)
            return tuple(
                self._trial(r, rate, search_seed(self.context), self.effort.fraction) for rate in rates
            )
        ladders = tuple(t for r in self.effort.ranks for t in self._ladder(r, self.effort.rates))
        return (*ladders, *self._published(ladders)) if self.effort.wide else ladders

    def _published(self, ladders: Sequence[Trial]) -> tuple[Trial, ...]:
        """The usual grid at the default recipe's rank and batch size as far as the ladders lack it: an opponent for
        the answer that costs nearly nothing beside them."""
        recipe, ours = default_recipe(), self.context.wishes
        batches = (recipe.batch_size,) if not ours.batch_sizes else fitting_batches(self.context)
        if self.scale.given or recipe.r not in self.candidates or recipe.batch_size not in batches:
            return ()
        if recipe.batch_size > largest_batch(self.context):
            return ()
        same = [t.hyper_parameters for t in ladders if t.hyper_parameters.r == recipe.r]
        tried = [each.learning_rate for each in same if each.batch_size == recipe.batch_size]
        missing = [rate for rate in PUBLISHED_RATES if not any(stands_for(near, rate) for near in tried)]
        settings = [
            hyper_parameters(self.context, r=recipe.r, rate=rate, batch=recipe.batch_size) for rate in missing
        ]
        return tuple(trial(setting, search_seed(self.context)) for setting in settings)

    def run(self, reserve: float, prove: bool) -> Procedure[RankAnswer]:
        """Wave after wave, until nothing is needed or the budget less `reserve` is spent.

        Without `prove` the last look of the test is left to a later call.
        """
        self.proving = prove
        wanted = self._next(reserve) if self.results else self._affordable(self.first(), reserve)
        while wanted:
            self.asked |= {each.key for each in wanted}
            results = yield wanted
            self._take(results)
            if not results or (self.effort.wide and len(self.asked) > len(wanted) and not self._open):
                break
            wanted = self._next(reserve)
        return self.answer()

    def beside(self, others: Sequence[Trial], reserve: float) -> Procedure[RankAnswer]:
        """One request for trials of later stages, and beside them what the ranks still need as far as the budget less
        `reserve` pays for both."""
        self.proving = True
        field, room = self.field, self.ledger.left - reserve
        needs = (*self._rates(field), *self._proofs(field)) if self.effort.fraction == 1 else ()
        wanted = self._wave((others, *needs), room, wide=True)
        if wanted:
            self.asked |= {each.key for each in wanted}
            self._take((yield wanted))
        return self.answer()

    def _take(self, results: Results) -> None:
        """Keeps what compares ranks: the stage's own trials at the batch size of all comparisons."""
        for each in results:
            if each.asked.stage is Stage.RANK and each.asked.hyper_parameters.batch_size == self.batch:
                self.results.append(each)

    @property
    def _open(self) -> bool:
        """Whether a rank that matters has its best learning rate at an edge, or a failure that is not looked into."""
        field = self.field
        if not field.best:
            return True
        ranks = dict.fromkeys((choice(field), field.lowest, self.largest))
        return bool(field.suspects) or any(self._beyond(field, r) for r in ranks)

    # what to ask next

    @property
    def field(self) -> Field:
        return Field(self.context, self.batch, self.results)

    def _affordable(self, wanted: Sequence[Trial], reserve: float) -> tuple[Trial, ...]:
        return wave(self.context, [wanted], wide=True, room=self.ledger.left - reserve)

    def _next(self, reserve: float) -> tuple[Trial, ...]:
        if self.effort.fraction < 1:
            return ()
        field, room = self.field, self.ledger.left - reserve
        return self._wave((*self._rates(field), *self._proofs(field)), room, wide=self.effort.wide)

    def _wave(self, needs: Iterable[Sequence[Trial]], room: float, *, wide: bool) -> tuple[Trial, ...]:
        """The trials of these that were not asked before."""
        new = ([t for t in need if t.key not in self.asked] for need in needs)
        return wave(self.context, new, wide=wide, room=room)

    def _rates(self, field: Field) -> Iterator[Sequence[Trial]]:
        """Ranks and learning rates not run yet, in order of urgency; the caller leaves out what was asked before."""
        for cell in field.suspects:
            yield [self._trial(cell.r, self.scale.window(cell.rate / 3, 1)[0], search_seed(self.context))]
        if self.largest not in field.ladders:
            yield self._ladder(self.largest, self.effort.rates)
        yield self._beyond(field, self.largest)
        yield self._below_edge(field, self.largest)
        if not field.best:
            return
        yield from self._way_down(field)
        chosen = choice(field)
        for r in dict.fromkeys((chosen, field.lowest)):
            yield self._beyond(field, r)
        yield from self._retries(field, chosen)
        yield from self._middle(field)
        for r in dict.fromkeys((chosen, self.largest, field.lowest)):
            yield self._below_edge(field, r)
            yield self._vertex(field, r)
        if self.effort.wide:
            for r in field.best:
                yield self._beyond(field, r)
                yield self._finer(field, r)

    def _proofs(self, field: Field) -> Iterator[Sequence[Trial]]:
        """Repeats with the seeds of the test, in order of urgency."""
        if not field.best:
            return
        chosen = choice(field)
        first, last = self.effort.looks
        yield self._repeats(field, (chosen, self.largest), first)
        if self.effort.wide:
            near = [
                r
                for r in field.best
                if field.level(r) <= field.level(field.lowest) + NEAR * self.context.wishes.margin
            ]
            yield self._repeats(field, (*near, field.lowest), first)
            for r in near:
                yield self._neighbours(field, r)
        yield self._repeats(field, (chosen, self.largest, field.lowest), first)
        if self.proving and self._undecided(field, chosen):
            yield self._repeats(field, (chosen, self.largest), last)

    def _trial(self, r: int, rate: float, seed: int, fraction: float = 1.0) -> Trial:
        setting = hyper_parameters(self.context, r=r, rate=rate, batch=self.batch)
        return trial(setting, seed, fraction=fraction)

    def _centre(self, field: Field, r: int) -> float:
        return field.correction(r) * usual_rate(self.context, r, self.batch)

    def _ladder(self, r: int, count: int) -> list[Trial]:
        """Neighbouring learning rates around the expected one."""
        rates = self.scale.window(self._centre(self.field, r), count)
        return [self._trial(r, rate, search_seed(self.context)) for rate in rates]

    def _beyond(self, field: Field, r: int) -> list[Trial]:
        """The learning rates that are missing beside the best of a rank."""
        ladder = field.ladders.get(r)
        if ladder is None or ladder.closed or r not in field.best or len(ladder.tried) >= MOST_RATES:
            return []
        asked = sorted(
            {x.asked.hyper_parameters.learning_rate for x in field.results if x.asked.hyper_parameters.r == r}
        )
        best = min(ladder.tried, key=lambda pair: pair[1])[0]
        found = []
        for side, edge, open_side in (
            (-1, asked[0], best == ladder.tried[0][0]),
            (1, asked[-1], best == ladder.tried[-1][0]),
        ):
            rate = self.scale.beyond(edge, side) if open_side else None
            # a table may have no other cell on that side
            if rate is not None and not self._snapped(field, r, edge, side):
                found.append(self._trial(r, rate, search_seed(self.context)))
        return found

    def _snapped(self, field: Field, r: int, edge: float, side: int) -> bool:
        """Whether the outermost learning rate that was asked for became one that was asked for before."""
        own = {
            x.asked.hyper_parameters.learning_rate: x.trial.hyper_parameters.learning_rate
            for x in field.results
            if x.asked.hyper_parameters.r == r and x.finished
        }
        return edge in own and list(own.values()).count(own[edge]) > 1 and (own[edge] - edge) * side < 0

    def _way_down(self, field: Field) -> Iterator[Sequence[Trial]]:
        """The next rank below those that are within the margin of the best, at the learning rate carried down."""
        r = self._lowest_near(field)
        below = [other for other in self.candidates if other * STEP_DOWN <= r]
        following = max(below, default=self.candidates[0])
        if following < r and following not in field.ladders:
            yield self._ladder(following, 1)

    def _lowest_near(self, field: Field) -> int:
        """The rank to which the way down has led: it and all between it and the best are within the margin of that."""
        level = field.level(field.lowest) + self.context.wishes.margin
        reached = field.lowest
        for r in sorted((r for r in field.best if r < reached), reverse=True):
            if field.level(r) > level:
                break
            reached = r
        return reached

    def _retries(self, field: Field, chosen: int) -> Iterator[Sequence[Trial]]:
        """Other learning rates for the first rank that was found too small, before it is given up."""
        below = [r for r in field.ladders if r < chosen]
        if below and (max(below) not in field.best or field.within(max(below), field.lowest) > 0.02):
            yield self._beyond(field, max(below))

    def _middle(self, field: Field) -> Iterator[Sequence[Trial]]:
        """The rank between the one reached and the first one that was found too small."""
        reached = self._lowest_near(field)
        below = max((r for r in field.ladders if r < reached), default=0)
        between = [r for r in self.candidates if below < r < reached and r not in field.ladders]
        if below and between:
            yield self._ladder(nearest(between, (below * reached) ** 0.5), 1)

    def _below_edge(self, field: Field, r: int) -> list[Trial]:
        """The middle between a rank's best learning rate and a neighbour that diverged: no parabola goes through
        these, and the best lies near the edge."""
        edge = field.edge(r) if r in field.best and not self.scale.given else None
        if edge is None or edge <= 2 * field.best[r].rate:
            return []
        return [self._trial(r, two_digits((field.best[r].rate * edge) ** 0.5), search_seed(self.context))]

    def _vertex(self, field: Field, r: int) -> list[Trial]:
        """The minimum of the parabola through a rank's best learning rate and its neighbours, if that is another."""
        ladder = field.ladders.get(r)
        if ladder is None or not ladder.closed or self.scale.given or r not in field.best:
            return []
        rate = field.best[r].rate
        if self.scale.steps_between(*sorted((rate, ladder.best))) < 0.2:
            return []
        return [self._trial(r, ladder.best, search_seed(self.context))]

    def _finer(self, field: Field, r: int) -> list[Trial]:
        """The rate between those tried where the rank may be better by enough to matter."""
        if self.scale.given:
            return []
        rate, gain = field.finer[r]
        reach = field.level(r) - gain - field.level(field.lowest)
        if gain < WORTH * self.context.wishes.margin or reach > NEAR * self.context.wishes.margin:
            return []
        return [self._trial(r, two_digits(rate), search_seed(self.context))]

    def _neighbours(self, field: Field, r: int) -> list[Trial]:
        """The learning rates beside the best one, with another seed: they steady the minimum."""
        own = [cell.rate for cell in field.cells if cell.r == r and not cell.diverged]
        index = own.index(field.best[r].rate)
        near = own[max(index - 1, 0) : index] + own[index + 1 : index + 2]
        near = [rate for rate in near if (r, rate) in field.promising]
        return [self._trial(r, rate, seed) for rate in near for seed in test_seeds(self.context, 1)]

    def _repeats(self, field: Field, ranks: Sequence[int], count: int) -> list[Trial]:
        """Runs of ranks at their best with the seeds of the test."""
        known = [field.best[r] for r in dict.fromkeys(ranks) if r in field.best]
        if len({cell.r for cell in known}) < 2 and len(field.ladders) > 1:
            known = known[:1]
        return [
            self._trial(cell.r, self._asked(cell), seed)
            for cell in known
            for seed in test_seeds(self.context, count)
        ]

    @staticmethod
    def _asked(cell: Cell) -> float:
        """The learning rate that was asked for when this cell was run; the nearest where there were several."""
        rates = {x.asked.hyper_parameters.learning_rate for x in cell.results}
        return min(rates, key=lambda rate: (abs(log2(rate / cell.rate)), rate))

    def _undecided(self, field: Field, chosen: int) -> bool:
        if chosen == self.largest or chosen not in field.best or self.largest not in field.best:
            return chosen == self.largest and len(field.best) > 1
        comparison = self._compare(self._measured(field, chosen), self._measured(field, self.largest))
        return comparison is None or comparison.verdict is Verdict.UNDECIDED

    # what is known

    def _measured(self, field: Field, r: int) -> Measured:
        cell, ladder = field.best[r], field.ladders[r]
        results = finished(self.context, cell.results)
        seeds = {*test_seeds(self.context, self.effort.looks[1])}
        if self.context.limits.seeds:  # seeds of a table come in turn
            seeds = {seed % self.context.limits.seeds for seed in seeds}
        tested = tuple(x for x in results if x.asked.seed in seeds or x.trial.seed in seeds)
        return Measured(
            r=r,
            learning_rate=self._rate(field, r),
            bracket=ladder,
            results=results,
            tested=tested,
        )

    def _rate(self, field: Field, r: int) -> float:
        """Learning rate of the best cell; that of the parabola's minimum if it was not run and nothing was repeated."""
        cell, ladder = field.best[r], field.ladders[r]
        rate = self._asked(cell)
        if (
            ladder.closed
            and not self.scale.given
            and len(cell.results) == 1
            and self.context.limits.seeds != 1
        ):
            beside = [x.rate for x in field.cells if x.r == r and x.rate > cell.rate and x.diverged]
            if not beside or ladder.best <= cell.rate:
                return ladder.best
        return rate

    def _compare(self, m: Measured, reference: Measured) -> Comparison | None:
        """The comparison by the test seeds, at the last look of both ranks; the first look's decision stands."""
        first, last = self.effort.looks
        if not (m.tested and reference.tested):
            return None
        noise = self._noise()
        early = compare(self.context, m.tested[:first], reference.tested[:first], noise)
        if last <= first:
            return early
        early = early.at_first_look(first / last)
        both = min(len(m.tested), len(reference.tested))
        if early.verdict is not Verdict.UNDECIDED or both <= first:
            return early
        return compare(self.context, m.tested, reference.tested, noise).after(early)

    def _noise(self) -> SeedNoise:
        """Pooled over what was repeated near each rank's best: past the edge of stability seeds scatter more."""
        return seed_noise(self.context, self.field.near_best)

    def answer(self) -> RankAnswer:
        """The answer by all results so far."""
        field = self.field
        if not field.best:
            return self._unmeasured(field)
        measured = {r: self._measured(field, r) for r in field.best}
        chosen, reference = measured[choice(field)], measured[max(measured)]
        comparisons = self._tests(measured, reference)
        verdicts = {r: c.verdict for r, c in comparisons}
        best = measured[field.lowest]
        shown = verdicts.get(chosen.r) is Verdict.ADEQUATE and chosen.fair and reference.fair
        against_best = self._against_best(best, {r: measured[r] for r in verdicts}, reference)
        beaten = chosen.r in against_best and against_best[chosen.r].verdict is not Verdict.ADEQUATE
        return RankAnswer(
            chosen=chosen,
            reference=reference,
            measured=tuple(measured[r] for r in sorted(measured)),
            comparisons=comparisons,
            best=best,
            against_best=against_best,
            settled=shown and not beaten,
            intervals=self._intervals(chosen.r, reference.r, comparisons),
            adequate={r: adequate(field, r) for r in field.best},
            law=self._law(field, measured),
            noise=self._noise(),
            correction=field.correction(reference.r),
            outliers=field.outliers,
            all_results=tuple(self.results),
        )

    def _tests(
        self, measured: Mapping[int, Measured], reference: Measured
    ) -> tuple[tuple[int, Comparison], ...]:
        """Comparisons from the largest rank downwards, to the first that is not adequate."""
        found = []
        for r in sorted(measured, reverse=True):
            comparison = self._compare(measured[r], reference) if r != reference.r else None
            if comparison is None:
                continue
            found.append((r, comparison))
            if comparison.verdict is not Verdict.ADEQUATE:
                break
        return tuple(found)

    def _against_best(
        self, best: Measured, tested: Mapping[int, Measured], reference: Measured
    ) -> dict[int, Comparison]:
        """Comparisons with the best rank, of ranks that were compared with the reference: as low as it measured, luck
        is part of it, so that its test seeds alone count where it has any."""
        if best.r == reference.r:
            return {}
        noise = self._noise()
        return {
            r: compare(self.context, m.tested or m.results, best.tested or best.results, noise)
            for r, m in tested.items()
            if r != best.r
        }

    def _intervals(
        self, chosen: int, reference: int, comparisons: Sequence[tuple[int, Comparison]]
    ) -> dict[int, tuple[float, float] | None]:
        """Intervals that the decision rests on, each rank at its own best rate, tried or not: wider than the test of
        the settings that were run. The ranks between have their one-sided bounds, which the test is about."""
        moved = {}
        for r, comparison in comparisons:
            if r == chosen or comparison.verdict is not Verdict.ADEQUATE:
                short, doubt = self.field.shortfall(r, reference)
                moved[r] = comparison.moved(-short, doubt)
        return dict(zip(moved, family_intervals(list(moved.values())), strict=True))

    def _unmeasured(self, field: Field) -> RankAnswer:
        """Nothing has finished on all rows: the prior's rank, at the best rate of part of the rows if there is one."""
        r = nearest(self.candidates, rank_prior(self.context).value)
        rate = self._centre(field, r)
        part = [x for x in self.results if x.finished and x.trial.fraction < 1]
        if part:
            best = min(part, key=lambda x: x.nll)
            fraction = best.asked.fraction
            law = usual_rate(self.context, r, self.batch) / usual_rate(self.context, r, self.batch, fraction)
            rate = best.asked.hyper_parameters.learning_rate * law
        chosen = Measured(r=r, learning_rate=self.scale.window(rate, 1)[0], bracket=None, results=())
        return RankAnswer(
            chosen=chosen,
            reference=None,
            measured=(),
            comparisons=(),
            best=None,
            against_best={},
            settled=False,
            intervals={},
            adequate={},
            law=None,
            noise=seed_noise(self.context, self.results),
            correction=1.0,
            outliers=frozenset(),
            all_results=tuple(self.results),
        )

    def _law(self, field: Field, measured: Mapping[int, Measured]) -> PowerLaw | None:
        """Through the ranks that did not fail; None below three of them, or where the rank changes nothing."""
        known = [m for r, m in measured.items() if r not in field.outliers]
        if len(known) < 3:
            return None
        losses = [mean_loss(self.context, m.results) for m in known]
        law = fit_power_law([m.r for m in known], losses)
        return law if law.excess(min(m.r for m in known), self.largest) > 0 else None
