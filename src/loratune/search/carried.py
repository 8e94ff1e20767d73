"""A setting that was found on a smaller model of the family: here only its learning rate is measured again.

Rank, alpha, batch size and epochs are carried as they are (`bench/proxy.py` has what that loses); rates are the carried
one and its neighbours, and one more where the best of these is at an edge.
"""

from dataclasses import dataclass, replace
from math import inf, log

from loratune.search.bracket import Bracket, bracket
from loratune.search.claims import note
from loratune.search.compare import unit
from loratune.search.procedure import Ledger, Procedure
from loratune.search.space import RATE_STEP, RateScale, search_seed, trial
from loratune.search.staged import Conclusion, StagedStrategy
from loratune.values import Evidence, HyperParameters, SearchContext, SearchPlan, Stage, Trial

QUESTIONS = {
    Stage.RANK: "Is the carried learning rate the best here too, at the carried rank and batch size?"
}
RATES = 3
_EXTENSIONS = 1


def carried_context(context: SearchContext, setting: HyperParameters) -> SearchContext:
    """The context of a search that measures this setting's learning rate, with the budget that this takes."""
    found = context.changed(
        carried=setting,
        flat_rate=setting.learning_rate,
        rate_factor=1.0,
        ranks=(setting.r,),
        batch_sizes=(setting.batch_size,),
        epochs=setting.epochs,
        epoch_choices=(),
        target_modules=setting.target_modules,
        tune_targets=False,
        tune_variants=(),
        regularise=False,
        beta=setting.beta,
        betas=(),
    )
    first = CarriedStrategy(found, "carried").first_trials()
    return found.changed(budget=found.wave_cost(first) + _EXTENSIONS * found.wave_cost(first[:1]))


@dataclass(frozen=True, slots=True)
class CarriedStrategy(StagedStrategy):
    """Three learning rates side by side, then perhaps a fourth. The recommended one was measured."""

    questions = QUESTIONS

    @property
    def setting(self) -> HyperParameters:
        """The setting that was carried over."""
        assert self.context.prior.carried is not None
        return self.context.prior.carried

    def _trial(self, rate: float) -> Trial:
        return trial(replace(self.setting, learning_rate=rate), search_seed(self.context))

    def first_trials(self) -> tuple[Trial, ...]:
        """Trials that are asked for at once."""
        rates = RateScale.of(self.context).window(self.setting.learning_rate, RATES)
        return tuple(map(self._trial, rates))

    def plan(self) -> SearchPlan:
        """One stage, without the fourth rate, which the budget has room for."""
        first = self.first_trials()
        rates = ", ".join(f"{each.hyper_parameters.learning_rate:g}" for each in first)
        note = f"learning rates {rates} at the carried setting; one more where the best is at an edge"
        counts = {Stage.RANK: (len(first), sum(map(self.context.cost, first)))}
        return SearchPlan(stages=self.planned(counts, first, {Stage.RANK: note}))

    def search(self, ledger: Ledger) -> Procedure[Conclusion]:
        """The bracket around the carried rate."""
        found = yield from bracket(
            self._trial,
            scale=RateScale.of(self.context),
            centre=self.setting.learning_rate,
            count=RATES,
            extensions=_EXTENSIONS,
            refine=False,
        )
        best = replace(self.setting, learning_rate=found.best)
        words = f"learning rate {found.best:g}; it was carried as {self.setting.learning_rate:g}"
        return Conclusion(
            hyper_parameters=best, evidence=self._claims(found), answers={Stage.RANK: (words, {})}
        )

    def _claims(self, found: Bracket) -> tuple[Evidence, ...]:
        """What was measured here, and what was not."""
        setting = self.setting
        kept = note(
            f"Rank {setting.r}, alpha {setting.lora_alpha:g}, batch size {setting.batch_size} and "
            f"{setting.epochs:g} epochs were carried from the proxy and not compared with others on this model."
        )
        measured = [(rate, nll) for rate, nll in found.tried if nll < inf]
        if not measured:
            text = f"Learning rate {setting.learning_rate:g} was carried from the proxy; no run has finished here."
            return note(text), kept
        tried = ", ".join(f"{rate:g}" for rate, _ in found.tried)
        carried = min(measured, key=lambda pair: abs(log(pair[0] / setting.learning_rate)))
        inside = "worse ones lie on both sides" if found.closed else "no worse one lies on one side of it"
        return (
            Evidence(
                claim=f"Of the learning rates measured on this model ({tried}) {found.best:g} is the best: {inside}.",
                value=found.best,
                unit="learning rate",
                holds=True if found.closed else None,
            ),
            Evidence(
                claim=(
                    f"The best learning rate of the proxy, {setting.learning_rate:g}, is the best here within a factor "
                    f"of {RATE_STEP:g}."
                ),
                value=carried[1] - found.nll,
                unit=unit(self.context.changed(metric="nll")),
                holds=abs(log(found.best / setting.learning_rate)) < 1.1 * log(RATE_STEP),
            ),
            kept,
        )
