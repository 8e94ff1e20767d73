"""Variants of LoRA against the setting recommended so far, at its rank and so with the same number of parameters.

An optional stage, the last. Knows variants by the fields that they change.
"""

from collections.abc import Sequence
from math import sqrt

from loratune.maths.laws import rate_by_alpha
from loratune.search.challenge import ChallengeAnswer, Contender, challenge
from loratune.search.claims import alternatives_not_run, challenge_claims, note
from loratune.search.procedure import Ledger, Procedure
from loratune.search.space import RateScale, unit_cost
from loratune.values import Evidence, HyperParameters, SearchContext, Stage, TrialResult
from loratune.values.hyperparameters import changed_by

QUESTION = "Does a variant of LoRA, with as many parameters, do better?"
RATES = 3
"""Learning rates of each variant: where the laws expect it, and a step to each side."""
FEWEST_SEEDS = 2
"""Seeds of the variant that looks best."""
RESERVED_SHARE = 1 / 3
"""Share of the budget, at most."""


def variants_reserve(context: SearchContext) -> float:
    """What the search keeps for this stage, in full-run equivalents; 0 where it is not asked for."""
    runs = RATES * len(context.wishes.tune_variants)
    if not runs:
        return 0.0
    return min((runs + FEWEST_SEEDS - 1) * unit_cost(context), RESERVED_SHARE * context.wishes.budget)


def variants_of(context: SearchContext, setting: HyperParameters) -> tuple[HyperParameters, ...]:
    """The variants asked for, each at its rates; what is expected to be best comes first.

    A scale of √r more wants a lower rate, by the law in alpha; LoRA+ begins at the rate over the root of its ratio,
    as in a search of its own.
    """
    found: list[list[HyperParameters]] = []
    for name in context.wishes.tune_variants:
        if impossible(setting, name):
            continue
        other = changed_by(setting, name)
        factor = rate_by_alpha(other.scaling) / rate_by_alpha(setting.scaling)
        factor /= sqrt(other.loraplus_lr_ratio / setting.loraplus_lr_ratio)
        centre = setting.learning_rate * factor
        rates = RateScale.of(context).window(centre, RATES)
        nearest = sorted(rates, key=lambda rate: max(rate / centre, centre / rate))
        found.append([changed_by(setting, name, learning_rate=rate) for rate in nearest])
    return tuple(row[place] for place in range(RATES) for row in found if place < len(row))


def impossible(setting: HyperParameters, name: str) -> str:
    """Why a variant is not to be tried, a clause; empty where it is."""
    if name == "rslora" and setting.r == 1:
        return "at rank 1 it is plain LoRA"
    if name == "dora" and setting.lora_dropout:
        return "it is trained without dropout"
    return ""


def describe(setting: HyperParameters) -> str:
    """`the variant DoRA`, `plain LoRA`: sentences may begin with it, names keep their letters."""
    return f"the variant {setting.variant}" if setting.variant else "plain LoRA"


def variants_stage(
    context: SearchContext,
    incumbent: Contender,
    *,
    seeds: int,
    earlier: Sequence[TrialResult],
    spare: float,
) -> Procedure[ChallengeAnswer]:
    """All of them in one wave, the best with more seeds; adopted only if shown better, whatever the margin."""
    return (
        yield from challenge(
            context,
            incumbent,
            variants_of(context, incumbent.setting),
            stage=Stage.VARIANT,
            seeds=max(seeds, FEWEST_SEEDS),
            earlier=earlier,
            prefer=None,
            spare=spare,
        )
    )


def variants_claims(context: SearchContext, answer: ChallengeAnswer, ledger: Ledger) -> tuple[Evidence, ...]:
    """One claim for each variant and rate, what was left out, and what follows."""
    settings = variants_of(context, answer.incumbent.setting)
    claims = list(challenge_claims(context, answer, describe)) if answer.all_results else []
    claims += alternatives_not_run(Stage.VARIANT, settings, answer.all_results, ledger)
    for name in context.wishes.tune_variants:
        if why := impossible(answer.incumbent.setting, name):
            claims.append(note(f"The variant {name} was not tried: {why}."))
    if answer.failed:
        claims.append(note(f"Variants: {answer.failed} of the runs diverged."))
    return tuple(claims)
