"""The words of the evidence: each claim with number, interval and whether it holds. Decides nothing."""

from collections.abc import Callable, Sequence
from math import inf

from loratune.maths.noninferiority import Comparison, Verdict, pool_seed_noise
from loratune.search.bracket import Bracket, shared_rate
from loratune.search.challenge import ChallengeAnswer, Contender
from loratune.search.compare import FULL, loss, rows_are_paired, unit
from loratune.search.procedure import Ledger
from loratune.search.ranks import Measured, RankAnswer
from loratune.search.space import RateScale
from loratune.values import Evidence, HyperParameters, SearchContext, Stage, TrialResult

ONE_STEP = 1.1
"""Steps of the learning-rate scale up to which two rates count as one apart: rates are rounded to two digits."""

EDGE_OF_STABILITY = 10.0
"""Ratio of the sd between seeds to the usual one from which a learning rate is called unstable."""


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
    if answer.unproven is not None or answer.comparisons[-1][1].verdict is Verdict.UNDECIDED:
        claims.append(_undecided_claim(context, answer))
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
    else:
        text += f": undecided, {_power(context, comparison)}."
    return Evidence(
        claim=text,
        value=comparison.difference,
        unit=unit(context),
        interval=answer.intervals.get(r),
        margin=comparison.margin,
        holds=comparison.verdict is Verdict.ADEQUATE,
    )


def _power(context: SearchContext, comparison: Comparison) -> str:
    """What an undecided comparison could have found."""
    if comparison.smallest_detectable is None:
        return "too little was repeated to know the noise"
    return f"the runs could have detected {comparison.smallest_detectable:.4g} {unit(context)} (80 % power)"


def _undecided_claim(context: SearchContext, answer: RankAnswer) -> Evidence:
    """Which rank is taken, and by which rule, where the test ended at one that it could not judge."""
    assert answer.reference is not None
    chosen, reference = answer.chosen.r, answer.reference.r
    last_rank, comparison = answer.comparisons[-1]
    if answer.unproven is not None:
        comparison = answer.unproven
        assert answer.curve is not None
        bound = _power(context, comparison)
        if comparison.seeds_measured:
            bound = f"it may lose up to {comparison.upper:.4g} {unit(context)} (one-sided 95 %), {bound}"
        text = (
            f"Rank {chosen} is as good as rank {reference}: not shown, {bound}; "
            f"it is taken because it is so with {_probability(answer.curve.adequate[chosen])} by the measured curve"
            f"{'' if answer.noise.known else ', if seeds scatter as they usually do'}."
        )
    elif chosen == reference:
        text = (
            f"A rank below {reference} is as good: the runs cannot show that a smaller rank is as good, "
            f"{_power(context, comparison)}; the largest is kept."
        )
    else:
        return note(
            f"The runs cannot separate rank {last_rank} from rank {reference}, {_power(context, comparison)}; "
            f"rank {chosen}, the smallest shown as good, is kept."
        )
    return Evidence(
        claim=text,
        value=comparison.difference,
        unit=unit(context),
        interval=answer.intervals[last_rank if answer.unproven is None else chosen],
        margin=comparison.margin,
        holds=False,
    )


def _probability(value: float) -> str:
    return "a probability above 0.99" if value > 0.99 else f"probability {value:.2f}"


def _noise_note(context: SearchContext, answer: RankAnswer) -> Evidence:
    results = [result for m in answer.measured for result in m.results]
    paired = "paired by validation row" if rows_are_paired(context, results) else "without values per row"
    if answer.noise.degrees == inf:
        source = f"an assumed sd of {answer.noise.variance**0.5:.2g} {unit(context)}"
    elif answer.noise.known:
        source = (
            f"an sd of {answer.noise.variance**0.5:.2g} {unit(context)} between seeds "
            f"({answer.noise.degrees:.0f} degrees of freedom)"
        )
    else:
        source = "what seeds change is not known"
    text = f"Variance model: {paired}, {source}"
    if sum(interval is not None for interval in answer.intervals.values()) > 1:
        text += (
            "; of the two intervals each leaves 0 out only where Holm's test does, at 5 % for both together"
        )
    return note(f"{text}.")


def rate_claim(chosen: Measured) -> Evidence:
    """Whether the learning rate's bracket is closed at the chosen rank."""
    if chosen.bracket is None or not chosen.bracket.tried:
        return note(
            f"Learning rate {chosen.learning_rate:g} at rank {chosen.r} was not compared with others there: "
            "the law carries it over."
        )
    found = chosen.bracket
    tried = ", ".join(f"{rate:g}" for rate, _ in found.tried)
    where = _rows([found])
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


def _rows(brackets: Sequence[Bracket]) -> str:
    """On which rows learning rates were compared."""
    smallest = min((result.trial.fraction for found in brackets for result in found.results), default=1.0)
    return "all rows" if smallest >= FULL else f"{smallest:.0%} of the rows"


def stability_claim(context: SearchContext, answer: RankAnswer) -> Evidence | None:
    """Whether seeds agree at the chosen learning rate; repeats disagree before the mean loss suffers.

    Against the pooled noise of the other ranks: needs two runs of the chosen one and two of another.
    """
    own = [loss(context, result) for result in answer.chosen.results]
    others = [[loss(context, x) for x in m.results] for m in answer.measured if m.r != answer.chosen.r]
    usual, here = pool_seed_noise(others), pool_seed_noise([own])
    if not (usual.known and here.known and usual.variance > 0):
        return None
    ratio = (here.variance / usual.variance) ** 0.5
    rate = answer.chosen.learning_rate
    text = f"Seeds agree at learning rate {rate:g}: their sd is {ratio:.2g} times that of the other ranks."
    if ratio > EDGE_OF_STABILITY:
        text = text[:-1] + f": no, this is the edge of stability; {rate / 2:.2g} is safer."
    return Evidence(claim=text, value=ratio, unit="times", holds=ratio <= EDGE_OF_STABILITY)


def slope_note(context: SearchContext, answer: RankAnswer) -> Evidence | None:
    """Whether the best learning rate moves with the rank, and what one for all ranks was measured to cost."""
    known = [(m, m.bracket) for m in answer.measured if m.bracket is not None and m.results]
    if len(known) < 2:
        return None
    rates = [m.learning_rate for m, _ in known]
    words = ", ".join(f"{m.learning_rate:g} at rank {m.r}" for m, _ in known)
    depends = RateScale.of(context).steps_between(min(rates), max(rates)) > ONE_STEP
    shared = shared_rate(context, [found for _, found in known])
    if shared is None:
        if depends:
            return note(f"The best learning rate depends on the rank: {words}.")
        return note(f"One learning rate served all ranks: the best ones lie within a grid step ({words}).")
    where = f"(one seed, {_rows([found for _, found in known])})"
    worst, lost = max(zip(known, shared.losses, strict=True), key=lambda pair: pair[1])
    if lost > context.margin:
        head = "depends on the rank" if depends else "differs by at most a grid step"
        cost = f"was {lost:.4g} {unit(context)} worse than at its own" if lost < inf else "did not finish"
        return note(
            f"The best learning rate {head}: {words}; with {shared.rate:g} for all, rank {worst[0].r} {cost} "
            f"{where}."
        )
    served = f"with {shared.rate:g} each rank was within the margin of its best {where}"
    if depends:
        return note(f"The best learning rate depends on the rank: {words}; yet {served}.")
    return note(f"One learning rate served all ranks: {served}; the best were {words}.")


def refusals(ledger: Ledger, stage: Stage) -> tuple[Evidence, ...]:
    """How many runs of a stage the budget did not pay for, where there are such."""
    count = sum(trial.stage is stage for trial in ledger.refused.values())
    return (
        (note(f"{_name(stage)}: {count} of the runs asked for were not made: the budget was spent."),)
        if count
        else ()
    )


def alternatives_not_run(
    stage: Stage, settings: Sequence[HyperParameters], results: Sequence[TrialResult], ledger: Ledger
) -> tuple[Evidence, ...]:
    """How many of a stage's alternatives have no run at all, and why."""
    run = {result.asked.hyper_parameters for result in results}
    unpaid = {trial.hyper_parameters for trial in ledger.refused.values()} - run
    refused = sum(setting in unpaid for setting in settings)
    waiting = sum(setting not in run for setting in settings) - refused
    return tuple(
        note(f"{_name(stage)}: {count} of {len(settings)} alternatives were not run: {reason}.")
        for count, reason in ((refused, "the budget was spent"), (waiting, "the search was cut short"))
        if count
    )


def _name(stage: Stage) -> str:
    return _sentence(str(stage))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def challenge_claims(
    context: SearchContext, answer: ChallengeAnswer, describe: Callable[[HyperParameters], str]
) -> tuple[Evidence, ...]:
    """One claim for each alternative, that which the decision relies on, and what follows.

    `describe` names a setting by the hyper-parameter in question, such as `batch size 8`.
    """
    kept = describe(answer.winner.setting)
    if not answer.compared:
        if answer.changed:
            return (note(f"{_sentence(kept)} is taken: what was used so far has no finished run."),)
        why = "every alternative diverged" if answer.failed else "no alternative was a different run"
        return (note(f"{_sentence(kept)} is kept: {why}."),)
    claims = [
        Evidence(
            claim=_sentence(_challenge_words(answer, contender, comparison, describe)),
            value=comparison.difference,
            unit=unit(context),
            interval=comparison.interval,
            margin=comparison.margin,
            holds=True,
        )
        for contender, comparison in answer.compared
    ]
    if not answer.changed and answer.ties:
        names = ", ".join(dict.fromkeys(describe(c.setting) for c in answer.ties))
        claims.append(note(f"Tie between {kept} and {names} within the noise: {kept} is kept."))
    return tuple(claims)


def _challenge_words(
    answer: ChallengeAnswer,
    contender: Contender,
    comparison: Comparison,
    describe: Callable[[HyperParameters], str],
) -> str:
    """What is true of an alternative against the incumbent."""
    before = describe(answer.incumbent.setting)
    name = f"{describe(contender.setting)} (learning rate {contender.setting.learning_rate:g})"
    better = comparison.better(len(answer.compared))
    if contender is answer.winner:
        if better:
            return f"{name} is taken: it is better than {before}."
        return f"{name} is taken: it is non-inferior to {before} and takes fewer steps."
    if better:
        return f"{name} is better than {before} too, but measured worse than the one taken."
    if answer.changed:
        return f"{name} is passed over: it is not shown better than {before}."
    return f"{before} is kept: {name} is not shown better."


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
