"""The words of the evidence: each claim with number, interval and whether it holds. Decides nothing."""

from math import inf

from loratune.maths.noninferiority import Comparison, Verdict
from loratune.search.challenge import ChallengeAnswer
from loratune.search.compare import rows_are_paired, unit
from loratune.search.ranks import Measured, RankAnswer
from loratune.values import Evidence, SearchContext


def note(text: str) -> Evidence:
    """A remark without a claim, such as a reduction for the budget."""
    return Evidence(claim=text)


def rank_claims(context: SearchContext, answer: RankAnswer) -> tuple[Evidence, ...]:
    """One claim for each rank tested, and on what they rest."""
    if answer.reference is None:
        return (note(f"No rank was measured on all rows: rank {answer.chosen.r} is the prior's."),)
    if not answer.comparisons:
        return (note(f"Only rank {answer.chosen.r} was measured: ranks were not compared."),)
    claims = [_rank_claim(context, answer, r, comparison) for r, comparison in answer.comparisons]
    last_rank, last = answer.comparisons[-1]
    if last.verdict is Verdict.UNDECIDED:
        claims.append(
            note(
                f"The runs cannot separate rank {last_rank} from rank {answer.reference.r}; "
                f"rank {answer.chosen.r} is the smallest not shown inferior that the power law expects within "
                "the margin."
            )
        )
    claims.append(_noise_note(context, answer))
    if answer.law is not None and len(answer.measured) > 2:
        law = answer.law
        claims.append(
            note(
                f"Power law through {len(answer.measured)} ranks: {law.limit:.4g} + {law.scale:.3g}·r^-"
                f"{law.exponent:.2f} {unit(context)}; it expects rank {answer.chosen.r} at "
                f"{law.excess(answer.chosen.r, answer.reference.r):+.4g} against rank {answer.reference.r}."
            )
        )
    return tuple(claims)


def _rank_claim(context: SearchContext, answer: RankAnswer, r: int, comparison: Comparison) -> Evidence:
    assert answer.reference is not None
    text = f"Rank {r} is non-inferior to rank {answer.reference.r}"
    if comparison.verdict is Verdict.ADEQUATE:
        text += f": the one-sided 95 % upper bound of its loss is {comparison.upper:.4g} {unit(context)}."
    elif comparison.verdict is Verdict.INFERIOR:
        text += f": no, it loses at least {comparison.lower:.4g} {unit(context)} (one-sided 95 %)."
    elif comparison.smallest_detectable is None:
        text += ": undecided, no setting was repeated and the noise is unknown."
    else:
        text += (
            f": undecided, this run could have detected {comparison.smallest_detectable:.4g} "
            f"{unit(context)} (80 % power)."
        )
    return Evidence(
        claim=text,
        value=comparison.difference,
        unit=unit(context),
        interval=comparison.interval,
        margin=comparison.margin,
        holds=comparison.verdict is Verdict.ADEQUATE,
    )


def _noise_note(context: SearchContext, answer: RankAnswer) -> Evidence:
    results = [result for m in answer.measured for result in m.results]
    paired = "paired by validation row" if rows_are_paired(context, results) else "without values per row"
    if answer.noise.degrees == inf:
        source = f"an assumed sd of {answer.noise.variance**0.5:.2g}"
    elif answer.noise.known:
        source = (
            f"an sd of {answer.noise.variance**0.5:.2g} between seeds "
            f"({answer.noise.degrees:.0f} degrees of freedom)"
        )
    else:
        source = "an unknown noise between seeds"
    return note(f"Variance model: {paired}, {source} {unit(context)}.")


def rate_claim(chosen: Measured) -> Evidence:
    """Whether the learning rate's bracket is closed at the chosen rank."""
    if chosen.bracket is None or not chosen.bracket.tried:
        return note(
            f"Learning rate {chosen.learning_rate:g} at rank {chosen.r} was not compared with others there: "
            "the law carries it over."
        )
    found = chosen.bracket
    tried = ", ".join(f"{rate:g}" for rate, _ in found.tried)
    fractions = {result.trial.fraction for result in found.results}
    where = "all rows" if min(fractions, default=1.0) > 0.999 else f"{min(fractions):.0%} of the rows"
    inside = "worse ones lie on both sides" if found.closed else "no worse one lies on one side of it"
    return Evidence(
        claim=(
            f"The best learning rate at rank {chosen.r} was bracketed by those tried on {where} ({tried}): "
            f"{inside}."
        ),
        value=chosen.learning_rate,
        unit="learning rate",
        interval=(found.tried[0][0], found.tried[-1][0]),
        holds=found.closed,
    )


def slope_note(answer: RankAnswer) -> Evidence | None:
    """How the best learning rate moves with the rank."""
    rates = [(m.r, m.learning_rate) for m in answer.measured if m.bracket is not None and m.results]
    if len(rates) < 2:
        return None
    text = ", ".join(f"{rate:g} at rank {r}" for r, rate in rates)
    return note(
        f"The best learning rate depends on the rank: {text}; one for all would have judged ranks wrongly."
    )


def challenge_claims(
    context: SearchContext, answer: ChallengeAnswer, name: str, field: str
) -> tuple[Evidence, ...]:
    """One claim for each alternative, and what follows."""
    if not answer.compared:
        if answer.failed:
            return (note(f"{name}: every alternative diverged."),)
        return (note(f"{name}: no alternative could be run; it was not compared."),)
    kept = getattr(answer.winner.setting, field)
    claims = []
    for contender, comparison in answer.compared:
        value = getattr(contender.setting, field)
        rate = contender.setting.learning_rate
        better = comparison.better(len(answer.compared))
        claims.append(
            Evidence(
                claim=f"{name} {value:g} (learning rate {rate:g}) is better than what was used so far.",
                value=comparison.difference,
                unit=unit(context),
                interval=comparison.interval,
                margin=comparison.margin,
                holds=better,
            )
        )
    if not answer.changed and answer.ties:
        names = ", ".join(f"{getattr(c.setting, field):g}" for c in answer.ties)
        claims.append(note(f"{name}: tie between {kept:g} and {names} within the noise; {kept:g} is kept."))
    elif answer.changed:
        claims.append(note(f"{name}: {kept:g} is taken."))
    return tuple(claims)


def regularisation_claims(context: SearchContext, answer: ChallengeAnswer) -> tuple[Evidence, ...]:
    """One claim for each setting with dropout or weight decay."""
    if not answer.compared:
        return (note("Regularisation: every run with dropout or weight decay failed."),)
    claims = []
    for contender, comparison in answer.compared:
        setting = contender.setting
        claims.append(
            Evidence(
                claim=(
                    f"Dropout {setting.lora_dropout:g} with weight decay {setting.weight_decay:g} "
                    "is better than neither."
                ),
                value=comparison.difference,
                unit=unit(context),
                interval=comparison.interval,
                margin=comparison.margin,
                holds=comparison.better(len(answer.compared)),
            )
        )
    if not answer.changed:
        claims.append(note("Regularisation: no evidence that it helps; none is used."))
    return tuple(claims)


def alpha_flatness(context: SearchContext, answer: ChallengeAnswer) -> Evidence | None:
    """Says so where no alpha differs from 2r; alpha and learning rate trade off against each other."""
    if not answer.compared:
        return None
    differences = [comparison.difference for _, comparison in answer.compared] + [0.0]
    flat = all(abs(difference) <= context.margin for difference in differences)
    ratios = sorted(
        {contender.setting.lora_alpha / contender.setting.r for contender, _ in answer.compared} | {2.0}
    )
    return Evidence(
        claim=(
            f"Alpha is flat from {ratios[0]:g}r to {ratios[-1]:g}r at this learning rate "
            "(a larger alpha acts like a larger learning rate)."
        ),
        value=max(differences) - min(differences),
        unit=unit(context),
        margin=context.margin,
        holds=flat,
    )
