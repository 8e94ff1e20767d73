"""The default strategy: each rank at its own learning rate, then batch size, alpha, regularisation if needed.

Every stage is fitted to the budget beforehand (`effort`); the final run belongs to `tuning`.
"""

from collections.abc import Mapping, Sequence
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
from loratune.search.compare import mean_loss
from loratune.search.effort import Effort, fit_effort
from loratune.search.expected import expected_history
from loratune.search.power import power_words
from loratune.search.procedure import Ledger, Procedure, Results
from loratune.search.rank_answer import RankAnswer
from loratune.search.ranks import RankStage
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
LATER = (Stage.BETA, Stage.BATCH, Stage.ALPHA, Stage.EPOCHS, Stage.REGULARISATION)
"""Stages that challenge a rank at its learning rate, in this order where one follows the other."""
_Later = tuple[Contender, Results, list[Evidence], Answers]
"""The contender after them, all results so far, and what they say."""


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
        """The ranks, then challenges of what was found, then the proof with what is left."""
        context = self.context
        effort, dropped = self._effort()
        variants_kept = variants_reserve(context)
        kept = targets_reserve(context) + variants_kept
        stage_one = RankStage(context, effort, ledger)
        ranks = yield from stage_one.run(effort.reserve + kept, prove=not (effort.reserve or effort.wide))
        best = self._contender(ranks)
        if effort.wide:
            wanted = {stage: self._alternatives(stage, effort, best) for stage in LATER}
            ranks = yield from stage_one.beside(_trials(context, effort, wanted), kept)
            after = yield from self._side_by_side(effort, best, self._contender(ranks), wanted, ledger, ranks)
        else:
            after = yield from self._one_by_one(effort, best, ledger, kept, ranks.all_results)
        best, seen, later, answers = after
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

    def _one_by_one(
        self, effort: Effort, best: Contender, ledger: Ledger, kept: float, seen: Results
    ) -> Procedure[_Later]:
        """Each challenge of what the one before it came to."""
        later: list[Evidence] = []
        answers: Answers = {}
        for stage in LATER:
            settings = self._alternatives(stage, effort, best)
            if not settings:
                continue
            spare = ledger.left - kept
            found = yield from self._challenge(stage, effort, best, settings, seen, spare)
            later += alternatives_not_run(stage, settings, found.all_results, ledger)
            if not found.all_results:
                continue
            best, seen = found.winner, (*seen, *found.all_results)
            later += _stage_claims(self.context, stage, found)
            answers[stage] = (challenge_words(stage, found), {})
        return best, seen, later, answers

    def _side_by_side(
        self,
        effort: Effort,
        before: Contender,
        best: Contender,
        wanted: Mapping[Stage, tuple[HyperParameters, ...]],
        ledger: Ledger,
        ranks: RankAnswer,
    ) -> Procedure[_Later]:
        """All challenges of one contender, asked for together. The best alternative alone is taken, as no two of them
        ran together, and none where the rank is no longer the `best`; another learning rate of it is what they are
        compared with.
        """
        base = best if best.setting.r == before.setting.r else before
        seen, later, answers = ranks.all_results, list[Evidence](), Answers()
        found: dict[Stage, ChallengeAnswer] = {}
        for stage, settings in wanted.items():
            answer = yield from self._challenge(stage, effort, base, settings, seen, 0.0)
            later += alternatives_not_run(stage, settings, answer.all_results, ledger)
            seen = (*seen, *answer.all_results)
            if answer.all_results:
                found[stage] = answer
        changed = [answer for answer in found.values() if answer.changed]
        taken = None
        if base is best and changed:
            taken = min(changed, key=lambda answer: mean_loss(self.context, answer.winner.results))
            best = taken.winner
        for stage, answer in found.items():
            shown = answer if answer is taken else answer.without_change()
            later += _stage_claims(self.context, stage, shown)
            answers[stage] = (challenge_words(stage, shown), {})
        return best, seen, later, answers

    def _challenge(
        self,
        stage: Stage,
        effort: Effort,
        best: Contender,
        settings: tuple[HyperParameters, ...],
        earlier: Results,
        spare: float,
    ) -> Procedure[ChallengeAnswer]:
        prefer = _fastest(settings, best) if settings and stage in (Stage.BATCH, Stage.EPOCHS) else None
        return challenge(
            self.context,
            best,
            settings,
            stage=stage,
            seeds=effort.seeds,
            at_once=effort.wide,
            earlier=earlier,
            prefer=prefer,
            spare=spare,
        )

    def _alternatives(self, stage: Stage, effort: Effort, best: Contender) -> tuple[HyperParameters, ...]:
        """What a later stage sets against a contender."""
        alternatives = {
            Stage.BETA: self._betas,
            Stage.BATCH: self._batches,
            Stage.ALPHA: self._alphas,
            Stage.EPOCHS: self._epochs,
            Stage.REGULARISATION: self._regularisers,
        }
        return alternatives[stage](effort, best)

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


def _trials(
    context: SearchContext, effort: Effort, wanted: Mapping[Stage, tuple[HyperParameters, ...]]
) -> tuple[Trial, ...]:
    """The trials of all challenges, as each asks for them."""
    return tuple(
        trial(setting, seed, stage=stage)
        for stage, settings in wanted.items()
        for setting in settings
        for seed in test_seeds(context, effort.seeds)
    )


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
