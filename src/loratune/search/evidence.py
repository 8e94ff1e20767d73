"""The default strategy: each rank at its own learning rate, then batch size, alpha, regularisation if needed.

Every stage is fitted to the budget beforehand (`effort`); the final run belongs to the tune layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from loratune.search.challenge import ChallengeAnswer, Contender, challenge, overfits, regularised
from loratune.search.claims import (
    alpha_flatness,
    challenge_claims,
    note,
    rank_claims,
    rate_claim,
    regularisation_claims,
    slope_note,
)
from loratune.search.effort import Effort, fit_effort, price
from loratune.search.procedure import Ledger, Procedure, ask, decide
from loratune.search.ranks import RankStage
from loratune.search.space import (
    RateScale,
    base_batch,
    hyper_parameters,
    other_batches,
    other_ratios,
)
from loratune.search.summary import challenge_words, plan_note, rank_details, rank_words, stage_summary
from loratune.values import (
    Decision,
    Evidence,
    HyperParameters,
    PlannedStage,
    SearchContext,
    SearchPlan,
    Stage,
    Trial,
    TrialResult,
)

QUESTIONS = {
    Stage.RANK: "Which is the smallest rank that is as good as the largest, each at its own learning rate?",
    Stage.BATCH: "Does another batch size, with its learning rate, do better at that rank?",
    Stage.ALPHA: "Does another alpha do better than 2r?",
    Stage.REGULARISATION: "Does dropout or weight decay help against over-fitting?",
}
BATCH_RATE_EXPONENT = 0.5


@dataclass(frozen=True, slots=True)
class EvidenceStrategy:
    """Ranks by paired tests at full length; low fidelity only discards learning rates."""

    context: SearchContext
    name: str = "evidence"

    def plan(self) -> SearchPlan:
        """The stages as the budget allows them. Raises `BudgetError` where it pays for no trial."""
        effort, dropped = fit_effort(self.context)
        costs = price(self.context, effort)
        stages = tuple(
            PlannedStage(
                name=str(stage),
                question=QUESTIONS[stage],
                trials=trials,
                cost=cost,
                examples=self._first_trials(effort) if stage is Stage.RANK else (),
                note=plan_note(self.context, effort, stage),
            )
            for stage, trials, cost in zip(QUESTIONS, costs.trials, costs.costs, strict=True)
        )
        return SearchPlan(stages=stages, dropped=dropped)

    def ask(self, history: Sequence[TrialResult]) -> tuple[Trial, ...]:
        """The next trials, within the budget; empty when nothing is left to ask."""
        return ask(self._search, self.context, history)

    def decide(self, history: Sequence[TrialResult]) -> Decision:
        """The answer that this history supports."""
        setting, evidence, answers = decide(self._search, self.context, history)
        return Decision(
            hyper_parameters=setting,
            evidence=evidence,
            stages=tuple(
                stage_summary(stage, QUESTIONS[stage], answer, history, details)
                for stage, (answer, details) in answers.items()
            ),
            settled=not self.ask(history),
        )

    def _first_trials(self, effort: Effort) -> tuple[Trial, ...]:
        """The trials of the first request."""
        context = replace(self.context, budget=float("inf"))
        stage = RankStage(context, effort, Ledger(budget=context.budget), 0.0)
        return next(stage.run())

    def _search(
        self, ledger: Ledger
    ) -> Procedure[tuple[HyperParameters, tuple[Evidence, ...], dict[Stage, tuple[str, dict[str, Any]]]]]:
        context = self.context
        effort, dropped = fit_effort(context)
        costs = dict(zip(QUESTIONS, price(context, effort).costs, strict=True))
        ranks = yield from RankStage(context, effort, ledger, price(context, effort).later).run()
        setting = hyper_parameters(
            context, r=ranks.chosen.r, rate=ranks.chosen.learning_rate, batch=base_batch(context)
        )
        best = Contender(setting=setting, results=ranks.chosen.results)
        evidence = [*rank_claims(context, ranks), rate_claim(ranks.chosen)]
        evidence += [claim for claim in (slope_note(ranks),) if claim is not None]
        answers = {Stage.RANK: (rank_words(ranks), rank_details(context, ranks))}
        seen = ranks.all_results
        for stage, alternatives, prefer in (
            (Stage.BATCH, self._batches, True),
            (Stage.ALPHA, self._alphas, False),
            (Stage.REGULARISATION, self._regularisers, False),
        ):
            settings = alternatives(effort, best)
            if not settings:
                continue
            found = yield from challenge(
                context,
                best,
                settings,
                stage=stage,
                seeds=effort.seeds,
                earlier=seen,
                prefer=_fastest(settings, best) if prefer else None,
                spare=ledger.left - sum(cost for later, cost in costs.items() if _after(later, stage)),
            )
            if not found.asked:
                evidence.append(note(f"The stage '{stage}' was left out: the budget was spent."))
                continue
            best, seen = found.winner, (*seen, *found.all_results)
            evidence += _stage_claims(context, stage, found)
            answers[stage] = (challenge_words(stage, found), {})
        evidence += [note(sentence) for sentence in dropped]
        return best.setting, tuple(evidence), answers

    def _batches(self, effort: Effort, best: Contender) -> tuple[HyperParameters, ...]:
        scale = RateScale.of(self.context)
        found = []
        for size in other_batches(self.context, best.setting.batch_size)[: effort.batches]:
            ratio = size / best.setting.batch_size
            centre = best.setting.learning_rate * ratio**BATCH_RATE_EXPONENT
            rates = [scale.window(centre, 1)[0]]
            if effort.rates_per_batch > 1:  # the exponent is between 0.2 and 0.8 in the literature
                rates.append(scale.window(best.setting.learning_rate, 1)[0])
            found += [
                replace(best.setting, batch_size=size, learning_rate=rate) for rate in dict.fromkeys(rates)
            ]
        return tuple(found)

    def _alphas(self, effort: Effort, best: Contender) -> tuple[HyperParameters, ...]:
        chosen = other_ratios(self.context)[: effort.alphas]
        return tuple(replace(best.setting, lora_alpha=ratio * best.setting.r) for ratio in chosen)

    def _regularisers(self, effort: Effort, best: Contender) -> tuple[HyperParameters, ...]:
        if not (effort.regularisers or overfits(self.context, best.results)):
            return ()
        return regularised(best.setting, self.context.rows)


def _after(later: Stage, stage: Stage) -> bool:
    order = list(QUESTIONS)
    return order.index(later) > order.index(stage)


def _fastest(settings: Sequence[HyperParameters], best: Contender) -> HyperParameters | None:
    """The alternative with the fewest steps, if it has fewer than the incumbent."""
    fastest = max(settings, key=lambda setting: setting.batch_size)
    return fastest if fastest.batch_size > best.setting.batch_size else None


def _stage_claims(context: SearchContext, stage: Stage, found: ChallengeAnswer) -> tuple[Evidence, ...]:
    if stage is Stage.BATCH:
        return challenge_claims(context, found, "Batch size", "batch_size")
    if stage is Stage.ALPHA:
        flat = alpha_flatness(context, found)
        return (*challenge_claims(context, found, "Alpha", "lora_alpha"), *((flat,) if flat else ()))
    return regularisation_claims(context, found)
