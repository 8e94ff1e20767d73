"""The default strategy: each rank at its own learning rate, then batch size, alpha, regularisation if needed.

Every stage is fitted to the budget beforehand (`effort`); the final run belongs to `tuning`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from loratune.search.challenge import ChallengeAnswer, Contender, challenge, overfits, regularised
from loratune.search.claims import (
    alpha_flatness,
    alternatives_not_run,
    challenge_claims,
    note,
    rank_claims,
    rate_claim,
    refusals,
    slope_note,
    stability_claim,
)
from loratune.search.effort import Effort, fit_effort
from loratune.search.expected import expected_history
from loratune.search.power import power_words
from loratune.search.procedure import Ledger, Procedure
from loratune.search.ranks import RankAnswer, RankStage
from loratune.search.space import (
    RateScale,
    base_batch,
    hyper_parameters,
    other_batches,
    other_betas,
    other_epochs,
    other_ratios,
    rate_for_epochs,
    test_seeds,
    trial,
)
from loratune.search.staged import Answers, Conclusion, StagedStrategy
from loratune.search.summary import challenge_words, plan_note, rank_details, rank_words
from loratune.search.targets_stage import QUESTION as TARGETS_QUESTION
from loratune.search.targets_stage import targets_claims, targets_reserve, targets_stage
from loratune.search.variants_stage import QUESTION as VARIANTS_QUESTION
from loratune.search.variants_stage import variants_claims, variants_reserve, variants_stage
from loratune.values import Evidence, HyperParameters, SearchContext, SearchPlan, Stage, Trial

QUESTIONS = {
    Stage.RANK: "Which is the smallest rank that is as good as the largest, each at its own learning rate?",
    Stage.BETA: "Does another beta, at this learning rate or the next, do better at that rank?",
    Stage.BATCH: "Does another batch size, with its learning rate, do better at that rank?",
    Stage.ALPHA: "Does another alpha do better than 2r?",
    Stage.EPOCHS: "Do more passes over the rows do better, or are fewer as good?",
    Stage.REGULARISATION: "Does dropout or weight decay help against over-fitting?",
}
ALL_QUESTIONS = {**QUESTIONS, Stage.TARGETS: TARGETS_QUESTION, Stage.VARIANT: VARIANTS_QUESTION}
"""The optional stages included."""
BATCH_RATE_EXPONENT = 0.5
Alternatives = Callable[[Effort, Contender], tuple[HyperParameters, ...]]
"""What a later stage sets against a contender."""


@dataclass(frozen=True, slots=True)
class EvidenceStrategy(StagedStrategy):
    """Ranks by paired tests at full length; low fidelity only discards learning rates."""

    name: str = "evidence"
    questions = ALL_QUESTIONS

    def _effort(self) -> tuple[Effort, tuple[str, ...]]:
        """What the budget allows beside the optional stages, and what it leaves out."""
        reserve = targets_reserve(self.context) + variants_reserve(self.context)
        return fit_effort(self.context.changed(budget=self.context.wishes.budget - reserve))

    def plan(self) -> SearchPlan:
        """What comes if results are as the laws expect. Raises `BudgetError` where the budget pays for no trial."""
        effort, dropped = self._effort()
        history = expected_history(self)
        counts: dict[Stage, tuple[int, float]] = {}
        wishes = self.context.wishes
        wished = {
            Stage.TARGETS: wishes.tune_targets,
            Stage.VARIANT: bool(wishes.tune_variants),
            Stage.EPOCHS: bool(wishes.epoch_choices),
            Stage.BETA: wishes.beta is not None,
        }
        for stage in (stage for stage in self.questions if wished.get(stage, True)):
            own = [result for result in history if result.asked.stage is stage]
            counts[stage] = (len(own), sum(result.cost for result in own))
        notes = {stage: plan_note(self.context, effort, stage) for stage in QUESTIONS}
        if effort.fraction == 1:
            notes[Stage.RANK] += f"; {power_words(self.context, history, effort.looks[1])}"
        return SearchPlan(stages=self.planned(counts, self.ask([]), notes), dropped=dropped)

    def search(self, ledger: Ledger) -> Procedure[Conclusion]:
        """The ranks, then up to three challenges of what was found, then the proof with what is left."""
        context = self.context
        effort, dropped = self._effort()
        variants_kept = variants_reserve(context)
        kept = targets_reserve(context) + variants_kept
        stage_one = RankStage(context, effort, ledger)
        ranks = yield from stage_one.run(effort.reserve + kept, prove=not (effort.reserve or effort.wide))
        best = self._contender(ranks)
        if effort.wide:
            ranks = yield from stage_one.beside(self._together(effort, best), kept)
            best = self._contender(ranks)
        later: list[Evidence] = []
        answers: Answers = {}
        seen = ranks.all_results
        for stage, alternatives, prefer in self._later():
            settings = alternatives(effort, best)
            if not settings:
                continue
            found = yield from challenge(
                context,
                best,
                settings,
                stage=stage,
                seeds=effort.seeds,
                at_once=effort.wide,
                earlier=seen,
                prefer=_fastest(settings, best) if prefer else None,
                spare=ledger.left - kept,
            )
            later += alternatives_not_run(stage, settings, found.all_results, ledger)
            if not found.all_results:
                continue
            best, seen = found.winner, (*seen, *found.all_results)
            later += _stage_claims(context, stage, found)
            answers[stage] = (challenge_words(stage, found), {})
        if best.setting == self._contender(ranks).setting:  # the base of all comparisons of ranks, still
            ranks = yield from stage_one.run(kept, prove=True)
            best = self._contender(ranks)
        evidence = [*_rank_evidence(context, ranks), *refusals(ledger, Stage.RANK), *later]
        answers = {Stage.RANK: (rank_words(ranks), rank_details(context, ranks)), **answers}
        if context.wishes.tune_targets:
            layers = yield from targets_stage(
                context, best, seeds=effort.seeds, earlier=seen, spare=ledger.left - variants_kept
            )
            evidence += targets_claims(context, layers, ledger)
            answers[Stage.TARGETS] = (layers.describe(layers.winner.setting), {})
            best, seen = layers.winner, (*seen, *layers.found.all_results)
        if context.wishes.tune_variants:
            found = yield from variants_stage(
                context, best, seeds=effort.seeds, earlier=seen, spare=ledger.left
            )
            evidence += variants_claims(context, found, ledger)
            answers[Stage.VARIANT] = (found.winner.setting.variant or "plain LoRA", {})
            best = found.winner
        evidence += [note(sentence) for sentence in dropped]
        return Conclusion(hyper_parameters=best.setting, evidence=tuple(evidence), answers=answers)

    def _later(self) -> tuple[tuple[Stage, Alternatives, bool], ...]:
        """The challenges of a rank at its learning rate; whether an alternative with fewer steps wins a tie."""
        return (
            (Stage.BETA, self._betas, False),
            (Stage.BATCH, self._batches, True),
            (Stage.ALPHA, self._alphas, False),
            (Stage.EPOCHS, self._epochs, True),
            (Stage.REGULARISATION, self._regularisers, False),
        )

    def _together(self, effort: Effort, best: Contender) -> tuple[Trial, ...]:
        """The trials of all challenges, as each asks for them, if the contender stays."""
        seeds = test_seeds(self.context, effort.seeds)
        return tuple(
            trial(setting, seed, stage=stage)
            for stage, alternatives, _ in self._later()
            for setting in alternatives(effort, best)
            for seed in seeds
        )

    def _contender(self, ranks: RankAnswer) -> Contender:
        """The rank that was chosen, at the batch size and alpha of all comparisons of ranks."""
        chosen = ranks.chosen
        setting = hyper_parameters(
            self.context, r=chosen.r, rate=chosen.learning_rate, batch=base_batch(self.context)
        )
        return Contender(setting=setting, results=chosen.results)

    def _betas(self, effort: Effort, best: Contender) -> tuple[HyperParameters, ...]:
        """Other betas, each at the learning rate so far and the next on its side: a smaller beta lets the model go
        farther from the base at the same loss, a larger one holds it back.
        """
        found = []
        scale, rate = RateScale.of(self.context), best.setting.learning_rate
        for beta in other_betas(self.context)[: effort.betas]:
            other = scale.beyond(rate, 1 if beta > (self.context.wishes.beta or beta) else -1)
            rates = (rate,) if other is None else (rate, other)
            found += [replace(best.setting, beta=beta, learning_rate=each) for each in rates]
        return tuple(found)

    def _batches(self, effort: Effort, best: Contender) -> tuple[HyperParameters, ...]:
        """Other batch sizes, each at the learning rate that the law gives it."""
        scale = RateScale.of(self.context)
        found = []
        for size in other_batches(self.context, best.setting.batch_size)[: effort.batches]:
            ratio = size / best.setting.batch_size
            rate = scale.window(best.setting.learning_rate * ratio**BATCH_RATE_EXPONENT, 1)[0]
            found.append(replace(best.setting, batch_size=size, learning_rate=rate))
        return tuple(found)

    def _alphas(self, effort: Effort, best: Contender) -> tuple[HyperParameters, ...]:
        chosen = other_ratios(self.context)[: effort.alphas]
        return tuple(replace(best.setting, lora_alpha=ratio * best.setting.r) for ratio in chosen)

    def _epochs(self, effort: Effort, best: Contender) -> tuple[HyperParameters, ...]:
        """Fewer and more passes, each at the learning rate that the law gives it; only fewer where it over-fits."""
        counts = other_epochs(self.context)[: effort.epochs]
        if overfits(self.context, best.results):
            counts = tuple(count for count in counts if count < self.context.wishes.epochs)
        scale = RateScale.of(self.context)
        found = []
        for count in counts:
            rate = best.setting.learning_rate * rate_for_epochs(self.context, count)
            found.append(replace(best.setting, epochs=count, learning_rate=scale.window(rate, 1)[0]))
        return tuple(found)

    def _regularisers(self, effort: Effort, best: Contender) -> tuple[HyperParameters, ...]:
        if not (effort.regularisers or overfits(self.context, best.results)):
            return ()
        return regularised(best.setting, self.context.data.rows)


def _rank_evidence(context: SearchContext, ranks: RankAnswer) -> tuple[Evidence, ...]:
    remarks = (slope_note(context, ranks), stability_claim(context, ranks))
    return (
        *rank_claims(context, ranks),
        rate_claim(ranks.chosen),
        *(claim for claim in remarks if claim is not None),
    )


def _fastest(settings: Sequence[HyperParameters], best: Contender) -> HyperParameters | None:
    """The alternative with the fewest steps, if it has fewer than the incumbent."""

    def steps(setting: HyperParameters) -> float:
        return setting.epochs / setting.batch_size

    fastest = min(settings, key=steps)
    return fastest if steps(fastest) < steps(best.setting) else None


def _stage_claims(context: SearchContext, stage: Stage, found: ChallengeAnswer) -> tuple[Evidence, ...]:
    if stage is Stage.BETA:
        words = "beta {0.beta:g} at learning rate {0.learning_rate:g}"
        return challenge_claims(context, found, words.format)
    if stage is Stage.BATCH:
        return challenge_claims(context, found, lambda setting: f"batch size {setting.batch_size}")
    if stage is Stage.ALPHA:
        flat = alpha_flatness(context, found)
        claims = challenge_claims(context, found, lambda setting: f"alpha {setting.lora_alpha:g}")
        return (*claims, *((flat,) if flat else ()))
    if stage is Stage.EPOCHS:
        return challenge_claims(context, found, lambda setting: f"{setting.epochs:g} epochs")
    return challenge_claims(
        context,
        found,
        lambda setting: f"dropout {setting.lora_dropout:g} with weight decay {setting.weight_decay:g}",
    )
