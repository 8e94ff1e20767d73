"""One incumbent against a few alternatives: batch size, alpha, regularisation. A tie keeps the cheapest.

Knows settings and results, not which hyper-parameter is in question.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from loratune.maths.noninferiority import Comparison, Verdict
from loratune.metrics import margin_in_nats
from loratune.search.compare import compare, finished, mean_loss, seed_noise
from loratune.search.procedure import Procedure, Results
from loratune.search.space import test_seeds, trial
from loratune.values import HyperParameters, SearchContext, Stage, TrialResult


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """A setting and its finished runs on all rows."""

    setting: HyperParameters
    results: Results


@dataclass(frozen=True, kw_only=True, slots=True)
class ChallengeAnswer:
    """How the alternatives did."""

    incumbent: Contender
    winner: Contender
    changed: bool
    compared: tuple[tuple[Contender, Comparison], ...]
    """Alternatives that were really different, each against the incumbent; a positive difference is worse."""
    failed: int
    """Alternatives that diverged."""
    all_results: Results

    def without_change(self) -> Self:
        """The same where the incumbent is kept, whatever the alternatives showed."""
        return replace(self, winner=self.incumbent, changed=False)

    @property
    def ties(self) -> tuple[Contender, ...]:
        """Alternatives that are neither better nor shown worse by more than the margin."""
        return tuple(c for c, comparison in self.compared if comparison.verdict is not Verdict.INFERIOR)


def challenge(
    context: SearchContext,
    incumbent: Contender,
    alternatives: Sequence[HyperParameters],
    *,
    stage: Stage,
    seeds: int,
    earlier: Sequence[TrialResult],
    prefer: HyperParameters | None,
    spare: float,
    at_once: bool = False,
) -> Procedure[ChallengeAnswer]:
    """Runs each alternative once, the most promising one with all seeds; adopts it only if it is better.

    `at_once`: all of them with all seeds, where width is nearly free.

    Better: beyond two-sided 95 %, shared by the number of alternatives. `prefer` is a cheaper alternative,
    which a shown non-inferiority is enough for. `earlier` are all results so far, for the seed noise;
    `spare` is what this stage may spend, in full-run equivalents.
    """
    order = test_seeds(context, max(seeds, 1))
    seeded = order if at_once else order[:1]
    results = list((yield tuple(trial(s, seed, stage=stage) for seed in seeded for s in alternatives)))
    contenders = _contenders(context, alternatives, results, incumbent)
    again = [] if at_once else _worth_repeating(context, incumbent, contenders, prefer)
    cost = sum(context.cost(trial(setting, 0)) for setting in again) * (len(order) - 1)
    if cost and cost <= spare - sum(result.cost for result in results):
        results += yield tuple(trial(s, seed, stage=stage) for s in again for seed in order[1:])
        contenders = _contenders(context, alternatives, results, incumbent)
    noise = seed_noise(context, (*earlier, *results))
    compared: list[tuple[Contender, Comparison]] = []
    if incumbent.results:
        compared = [(c, compare(context, c.results, incumbent.results, noise)) for c in contenders]
    winner = incumbent
    better = [(c, comparison) for c, comparison in compared if comparison.better(len(compared))]
    if better:
        winner = min(better, key=lambda pair: pair[1].difference)[0]
    else:
        adequate = [c for c, comparison in compared if comparison.verdict is Verdict.ADEQUATE]
        winner = next((c for c in adequate if c.setting == prefer), incumbent)
    if not incumbent.results and contenders:
        winner = min(contenders, key=lambda c: mean_loss(context, c.results))
    return ChallengeAnswer(
        incumbent=incumbent,
        winner=winner,
        changed=winner is not incumbent,
        compared=tuple(compared),
        failed=sum(not result.finished for result in results),
        all_results=tuple(results),
    )


def _worth_repeating(
    context: SearchContext,
    incumbent: Contender,
    contenders: Sequence[Contender],
    prefer: HyperParameters | None,
) -> list[HyperParameters]:
    """The best alternative if it looks better, the cheaper one if it looks as good."""
    if not contenders or not incumbent.results:
        return []
    level = mean_loss(context, incumbent.results)
    best = min(contenders, key=lambda c: mean_loss(context, c.results))
    found = [best.setting] if mean_loss(context, best.results) < level else []
    for c in contenders:
        near = mean_loss(context, c.results) <= level + context.wishes.margin
        if c.setting == prefer and c is not best and near:
            found.append(c.setting)
    return found


def _contenders(
    context: SearchContext,
    settings: Sequence[HyperParameters],
    results: Sequence[TrialResult],
    incumbent: Contender,
) -> tuple[Contender, ...]:
    """Settings of which every run finished, and which are another cell than the incumbent's and one another's."""
    taken = {result.trial.hyper_parameters for result in incumbent.results}
    found = []
    for setting in settings:
        runs = [r for r in results if r.asked.hyper_parameters == setting]
        own = finished(context, runs) if all(r.finished for r in runs) else ()
        cells = {result.trial.hyper_parameters for result in own}
        if own and not cells & taken:
            taken |= cells
            found.append(Contender(setting=setting, results=own))
    return tuple(found)


def overfits(context: SearchContext, results: Sequence[TrialResult]) -> bool:
    """Whether in most runs validation NLL rose by more than the margin from its best while training NLL fell.

    The last reading is left out: it is of all validation rows, the others of a fixed part.
    """
    margin = margin_in_nats(context.wishes.metric, context.wishes.margin)
    signs = []
    for result in results:
        points = result.curve[:-1]
        if len(points) < 2:
            continue
        best = min(points, key=lambda point: point.validation_nll)
        rose = points[-1].validation_nll > best.validation_nll + margin
        signs.append(rose and points[-1].train_nll < best.train_nll)
    return sum(signs) * 2 > len(signs) > 0


def regularised(setting: HyperParameters, rows: int) -> tuple[HyperParameters, ...]:
    """Dropout .05 and .1, and a weight decay that shrinks by a tenth over the run.

    AdamW shrinks weights by exp(-η·λ·steps) in all; at usual LoRA lengths anything far below
    λ = 0.1/(η·steps) does nothing.
    """
    steps = max(rows * setting.epochs / setting.batch_size, 1.0)
    decay = float(f"{0.1 / (setting.learning_rate * steps):.2g}")
    dropouts = () if setting.use_dora else (0.05, 0.1)  # which DoRA is trained without
    return (
        *(replace(setting, lora_dropout=p) for p in dropouts),
        replace(setting, weight_decay=decay),
    )
