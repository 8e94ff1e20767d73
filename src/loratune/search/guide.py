"""The published recipe to the letter, kept as a baseline: ranks at one learning rate, elbow, grid, alpha.

It ignores noise and makes no test; its claims are read off its curves.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, log

from loratune.maths.curves import elbow
from loratune.search.claims import note, refusals
from loratune.search.compare import loss, unit
from loratune.search.procedure import Ledger, Procedure
from loratune.search.space import ALPHA_RATIO, ALPHA_RATIOS, base_batch, largest_batch, too_small
from loratune.search.staged import Answers, Conclusion, StagedStrategy
from loratune.values import (
    ALL_LINEAR,
    Evidence,
    HyperParameters,
    SearchContext,
    SearchPlan,
    Stage,
    Trial,
    TrialResult,
)

RANKS = (4, 8, 16, 32, 64)
RATE = 5e-4
DROPOUT = 0.05
TARGETS = ("q_proj", "v_proj")
LEARNING_RATES = (1e-4, 5e-4, 1e-3, 5e-3)
BATCH_SIZES = (4, 8, 16, 32)
FRACTIONS = (0.5, 0.4, 0.3, 0.2)
NEAR = 0.01
"""Share of the best value within which the smallest rank is taken where there is no elbow."""

QUESTIONS = {
    Stage.RANK: "Where is the elbow of the metric against rank, at one learning rate and alpha = 2r?",
    Stage.BATCH: "Which learning rate and batch size of the grid is best at that rank?",
    Stage.ALPHA: "Which alpha of r, 1.5r, 2r and 3r is best?",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class GuidePlan:
    """The recipe's candidates after fitting to memory and budget."""

    ranks: tuple[int, ...]
    fraction: float
    grid: tuple[tuple[float, int], ...]
    """(learning rate, batch size)."""
    alphas: tuple[float, ...]
    """Ratios to the rank."""
    dropped: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GuideStrategy(StagedStrategy):
    """Ranks 4…64 at 5e-4, Kneedle, a grid of learning rate and batch size, alphas."""

    name: str = "guide"
    questions = QUESTIONS

    def plan(self) -> SearchPlan:
        """The recipe's three stages. Raises `BudgetError` where the budget pays for no trial."""
        recipe = fit_recipe(self.context)
        part, full = self._cost(recipe.fraction), self._cost(1.0)
        grid = self._grid(recipe, recipe.ranks[-1])
        counts = {
            Stage.RANK: (len(recipe.ranks), part * len(recipe.ranks)),
            Stage.BATCH: (len(grid), full * len(grid)),
            Stage.ALPHA: (len(recipe.alphas), full * len(recipe.alphas)),
        }
        return SearchPlan(stages=self.planned(counts, self._curve(recipe)), dropped=recipe.dropped)

    def _cost(self, fraction: float) -> float:
        setting = self._setting(RANKS[0], RATE, BATCH_SIZES[0])
        return self.context.cost(Trial(hyper_parameters=setting, fraction=fraction))

    def _setting(self, r: int, rate: float, batch: int) -> HyperParameters:
        targets = self.context.wishes.target_modules
        fixed = self.context.wishes.lora_alpha
        return HyperParameters(
            r=r,
            lora_alpha=ALPHA_RATIO * r if fixed is None else fixed,
            learning_rate=rate,
            batch_size=batch,
            lora_dropout=DROPOUT,
            epochs=self.context.wishes.epochs,
            warmup_ratio=self.context.wishes.warmup_ratio,
            target_modules=TARGETS if targets == ALL_LINEAR else targets,
            **dict(self.context.wishes.variant),
        )

    def _curve(self, recipe: GuidePlan) -> tuple[Trial, ...]:
        batch = base_batch(self.context)
        return tuple(
            Trial(
                hyper_parameters=self._setting(r, RATE, batch),
                seed=self.context.wishes.seed,
                fraction=recipe.fraction,
                stage=Stage.RANK,
            )
            for r in recipe.ranks
        )

    def _grid(self, recipe: GuidePlan, r: int) -> tuple[Trial, ...]:
        return tuple(
            Trial(
                hyper_parameters=self._setting(r, rate, batch),
                seed=self.context.wishes.seed,
                stage=Stage.BATCH,
            )
            for rate, batch in recipe.grid
        )

    def search(self, ledger: Ledger) -> Procedure[Conclusion]:
        """The rank curve, the grid, the alphas; each stage keeps its best run."""
        context, recipe = self.context, fit_recipe(self.context)
        curve = yield self._curve(recipe)
        r, how = choose_rank(context, curve, recipe.ranks)
        evidence = [how]
        answers: Answers = {Stage.RANK: (f"rank {r}", {})}
        setting = self._setting(r, RATE, base_batch(context))
        for stage in (Stage.BATCH, Stage.ALPHA):
            if stage is Stage.BATCH:
                wanted = self._grid(recipe, r)
            else:
                wanted = tuple(
                    Trial(
                        hyper_parameters=replace(setting, lora_alpha=ratio * r),
                        seed=context.wishes.seed,
                        stage=stage,
                    )
                    for ratio in recipe.alphas
                )
            results = [x for x in (yield wanted) if loss(context, x) < inf]
            if not results:
                if wanted:
                    evidence.append(note(f"The stage '{stage}' has no finished run."))
                continue
            best = min(results, key=lambda result: loss(context, result))
            setting = best.asked.hyper_parameters
            words = (
                f"learning rate {setting.learning_rate:g} with batch size {setting.batch_size}"
                if stage is Stage.BATCH
                else f"alpha {setting.lora_alpha:g}"
            )
            answers[stage] = (words, {})
            evidence.append(
                Evidence(
                    claim=f"Best of {len(results)} runs by {context.wishes.metric}, one seed, untested: {words}.",
                    value=loss(context, best),
                    unit=unit(context),
                )
            )
        evidence += [claim for stage in QUESTIONS for claim in refusals(ledger, stage)]
        evidence += [note(sentence) for sentence in recipe.dropped]
        return Conclusion(hyper_parameters=setting, evidence=tuple(evidence), answers=answers)


def choose_rank(
    context: SearchContext, curve: Sequence[TrialResult], ranks: Sequence[int]
) -> tuple[int, Evidence]:
    """Kneedle's elbow; without one the smallest rank within 1 % of the best; without runs the middle rank."""
    known = sorted((x.trial.hyper_parameters.r, loss(context, x)) for x in curve if loss(context, x) < inf)
    if not known:
        r = ranks[len(ranks) // 2]
        return r, note(f"No run of the rank curve has finished: rank {r} is the middle of the candidates.")
    found = elbow([r for r, _ in known], [value for _, value in known], larger_is_better=False)
    text = "is Kneedle's elbow of the curve at one learning rate"
    if found is None:
        best = min(value for _, value in known)
        found = next(r for r, value in known if value <= best + NEAR * abs(best))
        text = "is the smallest within 1 % of the best: the curve at one learning rate has no elbow"
    return found, Evidence(claim=f"Rank {found} {text}.", value=float(found), unit="rank")


def fit_recipe(context: SearchContext) -> GuidePlan:
    """The recipe inside memory and budget: first fewer rows, then no alphas, fewer grid cells, fewer ranks.

    Raises `BudgetError` where the budget does not pay for one trial.
    """
    ranks = tuple(sorted(set(context.wishes.ranks))) or tuple(
        r for r in RANKS if r <= context.model.largest_rank
    )
    rates = tuple(sorted(set(context.wishes.learning_rates))) or LEARNING_RATES
    sizes = tuple(sorted(set(context.wishes.batch_sizes))) or BATCH_SIZES
    fitting = tuple(size for size in sizes if size <= largest_batch(context)) or (base_batch(context),)
    dropped = [
        f"Batch size {size} is more than the {context.data.rows} training rows."
        if size > context.data.rows
        else f"Batch size {size} does not fit in memory."
        for size in sizes
        if size not in fitting
    ]
    grid = [(rate, size) for size in fitting for rate in rates]
    alphas = (context.wishes.alpha_ratios or ALPHA_RATIOS) if context.wishes.lora_alpha is None else ()
    fractions = [f for f in FRACTIONS if f >= context.limits.smallest_fraction] or [1.0]

    def cost(fraction: float) -> float:
        setting = HyperParameters(
            r=ranks[0] if ranks else 1,
            lora_alpha=1,
            learning_rate=RATE,
            batch_size=1,
            epochs=context.wishes.epochs,
        )
        return context.cost(Trial(hyper_parameters=setting, fraction=fraction))

    ranks, budget, full = ranks or (1,), context.wishes.budget, cost(1.0)
    fraction = next(
        (f for f in fractions if len(ranks) * cost(f) + full * (len(grid) + len(alphas)) <= budget),
        fractions[-1],
    )
    if fraction != fractions[0]:
        dropped.append(f"The rank curve uses {fraction:.0%} of the rows instead of {fractions[0]:.0%}.")
    curve = len(ranks) * cost(fraction)
    if alphas and curve + full * (len(grid) + len(alphas)) > budget:
        alphas = ()
        dropped.append("Alpha is not searched, it stays at 2r.")
    room = max(int((budget - curve) / full + 1e-9), 0)
    if room < len(grid):
        middle = base_batch(context)
        grid.sort(key=lambda cell: (abs(log(cell[1] / middle)), abs(log(cell[0] / RATE)), cell))
        dropped.append(f"The grid has {room} of {len(grid)} cells, those nearest to batch size {middle}.")
        grid = grid[:room]
    affordable = int(budget / cost(fraction) + 1e-9)
    if affordable < 1:
        raise too_small(context, cost(fraction))
    if affordable < len(ranks):
        dropped.append(f"The rank curve has {affordable} of {len(ranks)} ranks.")
        ranks = ranks[-affordable:]
    return GuidePlan(ranks=ranks, fraction=fraction, grid=tuple(grid), alphas=alphas, dropped=tuple(dropped))
