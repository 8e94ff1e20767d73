"""The words of the evidence: each claim with number, interval and whether it holds. Decides nothing."""

from collections.abc import Callable, Sequence
from math import ceil, inf

from scipy.special import fdtri

from loratune.maths.noninferiority import ONE_SIDED, Comparison, Verdict, pool_seed_noise
from loratune.search.bracket import Bracket, shared_rate
from loratune.search.challenge import ChallengeAnswer, Contender
from loratune.search.compare import FULL, loss, mean_loss, rows_are_paired, unit
from loratune.search.procedure import Ledger
from loratune.search.rank_answer import Measured, RankAnswer
from loratune.search.rank_choice import likely_enough
from loratune.search.space import RateScale, prior_setting
from loratune.values import Evidence, HyperParameters, SearchContext, Stage, Trial, TrialResult

ONE_STEP = 1.1
"""Steps of the learning-rate scale up to which two rates count as neighbours: rates are rounded to two digits."""

IN_QUESTION = 0.05
"""A rank at least this likely to be adequate is in question."""
BOUND_Z, POWER_Z = 1.645, 0.84
"""Normal quantiles of the test's level and of its power."""
MOST_RUNS_SHOWN = 400
"""Above this, the claim leaves out how many runs would decide."""
TOLD_EXCESS = 0.1
"""Share of the margin: a power law that expects a smaller loss of the chosen rank says nothing."""
EDGE_OF_STABILITY = 10.0
"""Ratio of the sd between seeds to the usual one from which a learning rate is called unstable."""


def note(text: str) -> Evidence:
    """A remark without a claim, such as a reduction for the budget."""
    return Evidence(claim=text)


def rank_claims(context: SearchContext, answer: RankAnswer) -> tuple[Evidence, ...]:
    """One claim for each rank tested, and what the claims rest on."""
    if answer.reference is None:
        return (note(f"No rank was measured on all rows: rank {answer.chosen.r} is the prior's."),)
    if len(answer.measured) < 2:
        return (note(f"Only rank {answer.chosen.r} was measured: ranks were not compared."),)
    claims = [_rank_claim(context, answer, r, comparison) for r, comparison in answer.comparisons]
    claims += [_taken_claim(context, answer)] if not answer.settled else []
    claims += [
        note(
            f"Rank {r} is left out of the claims about ranks: its loss is far above both neighbouring ranks, also "
            "where it was run again at a lower learning rate."
        )
        for r in sorted(answer.outliers)
    ]
    claims.append(_noise_note(context, answer))
    excess = 0.0 if answer.law is None else answer.law.excess(answer.chosen.r, answer.reference.r)
    if answer.law is not None and excess >= TOLD_EXCESS * context.wishes.margin:
        law = answer.law
        claims.append(
            note(
                f"Power law through the ranks measured: {law.limit:.4g} + {law.scale:.3g}·r^-"
                f"{law.exponent:.2f} {unit(context)}; it expects rank {answer.chosen.r} at "
                f"{excess:+.4g} against rank {answer.reference.r}."
            )
        )
    return tuple(claims)


def _rank_claim(context: SearchContext, answer: RankAnswer, r: int, comparison: Comparison) -> Evidence:
    """Shown as good, shown worse, or neither; as good only where both ranks were compared at their best."""
    assert answer.reference is not None
    verdict = rank_verdict(context, answer, r, comparison)
    text = f"Rank {r} is non-inferior to rank {answer.reference.r}"
    unfair = [m for m in answer.measured if m.r in (r, answer.reference.r) and not m.fair]
    if verdict is True:
        text += f": the one-sided 95 % upper bound of its loss is {comparison.upper:.4g} {unit(context)}."
    elif verdict is False:
        text += f": no, it loses at least {comparison.lower:.4g} {unit(context)} (one-sided 95 %)."
    elif unfair:
        text += f": not compared fairly, {_open_words(context, unfair)}."
    elif comparison.verdict is Verdict.ADEQUATE:
        assert answer.best is not None
        lead = answer.against_best[r].difference if r in answer.against_best else 0.0
        by = (
            "by more than the margin" if lead > comparison.margin else "and may be so by more than the margin"
        )
        text += f": cannot tell, rank {answer.best.r} measured better {by}."
    else:
        text += f": undecided, {_power(context, comparison)}."
    return Evidence(
        claim=text,
        value=comparison.difference,
        unit=unit(context),
        interval=answer.intervals.get(r),
        margin=comparison.margin,
        holds=verdict,
    )


def rank_verdict(context: SearchContext, answer: RankAnswer, r: int, comparison: Comparison) -> bool | None:
    """True: shown as good as the largest and as the best one measured, at the best learning rate of both. False: shown
    worse, with a learning rate of its own that has worse ones on both sides."""
    assert answer.reference is not None
    own = next(m for m in answer.measured if m.r == r)
    if comparison.verdict is Verdict.INFERIOR:
        return False if own.fair else None
    if comparison.verdict is not Verdict.ADEQUATE or not (own.fair and answer.reference.fair):
        return None
    return True if answer.shown_unbeaten(r) and r not in answer.outliers else None


def _open_words(context: SearchContext, unfair: Sequence[Measured]) -> str:
    """Which rank's learning rate lacks a worse one on one side, and how many runs would close the gap."""
    names = " and ".join(f"rank {m.r}" for m in unfair)
    runs = sum(_missing_sides(m) for m in unfair)
    return (
        f"the learning rate of {names} has no worse one on both sides on all rows; about {runs} more "
        f"run{'s' if runs > 1 else ''}{_minutes(context, runs)} would make it fair"
    )


def _missing_sides(m: Measured) -> int:
    """On how many sides of a rank's best learning rate nothing worse was run."""
    if m.bracket is None or not m.bracket.tried:
        return 2
    best = min(m.bracket.tried, key=lambda pair: pair[1])
    return (best == m.bracket.tried[0]) + (best == m.bracket.tried[-1])


def _minutes(context: SearchContext, runs: int) -> str:
    """Time of `runs` runs, where the device's pace is known."""
    if context.costs.pace is None or runs == 0:
        return ""
    alone = Trial(hyper_parameters=prior_setting(context))
    seconds = context.seconds([alone] * runs)
    return f" ({seconds / 60:.0f} min)" if seconds >= 90 else f" ({seconds:.0f} s)"


def _power(context: SearchContext, comparison: Comparison) -> str:
    """The smallest difference that an undecided comparison could have detected."""
    if comparison.smallest_detectable is None:
        return "too few settings were repeated to know the noise"
    return f"the runs could have detected {comparison.smallest_detectable:.4g} {unit(context)} (80 % power)"


def _taken_claim(context: SearchContext, answer: RankAnswer) -> Evidence:
    """How much ranks differ, which one is taken and why, and what would decide."""
    assert answer.reference is not None
    chosen, reference = answer.chosen, answer.reference
    near = [
        m for m in answer.measured if m.r not in answer.outliers and answer.adequate.get(m.r, 0) > IN_QUESTION
    ]
    ranks = sorted({m.r for m in near} | {chosen.r})
    losses = [mean_loss(context, m.results) for m in (*near, chosen)]
    differ = f"differ by at most {max(losses) - min(losses):.2g} {unit(context)} as measured"
    span = f"Ranks {ranks[0]} to {ranks[-1]} {differ}; " if len(ranks) > 1 else ""
    comparison = dict(answer.comparisons).get(chosen.r)
    value = None if comparison is None else comparison.difference
    if chosen.r == reference.r:
        likely = any(answer.adequate.get(m.r, 0) >= likely_enough(context) for m in near if m is not chosen)
        why = (
            "smaller ones are expected to lose too large a part of the margin"
            if likely
            else "no smaller rank is likely enough to be as good"
        )
        head = f"{span}rank {chosen.r}, the largest, is taken because {why}"
    else:
        head = (
            f"{span}rank {chosen.r} is taken because it loses at most {context.wishes.margin:g} {unit(context)} "
            f"against the largest and the best one with {_probability(answer.adequate[chosen.r])} by all runs together"
        )
        head += "" if answer.noise.known else ", if seeds scatter as they usually do"
    runs = runs_to_decide(context, answer)
    more = (
        f"; about {runs} more {'run' if runs == 1 else 'runs'}{_minutes(context, runs)} would decide"
        if runs
        else ""
    )
    return Evidence(
        claim=f"{head}{more}.",
        value=value,
        unit=unit(context),
        interval=answer.intervals.get(chosen.r),
        margin=context.wishes.margin,
        holds=None,
    )


def runs_to_decide(context: SearchContext, answer: RankAnswer) -> int:
    """Further runs, of the rank in question and the largest together, after which a test has 80 % power to show it as
    good if it is as it measured; 0 where more runs would not help or nothing was repeated."""
    assert answer.reference is not None
    below = [m for m in answer.measured if m.r < answer.reference.r]
    subject = (
        answer.chosen if answer.chosen.r < answer.reference.r else max(below, key=lambda m: m.r, default=None)
    )
    if subject is None or answer.noise.degrees < 1 or answer.noise.variance <= 0:
        return 0
    difference = mean_loss(context, subject.results) - mean_loss(context, answer.reference.results)
    away = abs(difference - context.wishes.margin)
    if away <= 0:
        return 0
    needed = ceil(2 * answer.noise.variance * (BOUND_Z + POWER_Z) ** 2 / away**2)
    missing = sum(max(needed - len(m.tested), 0) for m in (subject, answer.reference))
    return missing if missing <= MOST_RUNS_SHOWN else 0


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
        source = "an unknown noise of seeds"
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
            "it follows from the law."
        )
    found = chosen.bracket
    tried = ", ".join(f"{rate:g}" for rate, _ in found.tried)
    where = _rows([found])
    inside = "no worse one lies on one side of it"
    if found.closed:
        rates = [rate for rate, _ in found.tried]
        best, _ = min(found.tried, key=lambda pair: pair[1])
        between = rates[0] < best < rates[-1]  # else the user's own list ends there
        inside = "worse ones lie on both sides" if between else "no other was allowed beyond it"
    return Evidence(
        claim=(
            f"The best learning rate at rank {chosen.r} was bracketed by those tried on {where} ({tried}): "
            f"{inside}."
        ),
        value=chosen.learning_rate,
        unit="learning rate",
        holds=True if found.closed else None,
    )


def _rows(brackets: Sequence[Bracket]) -> str:
    """On which rows learning rates were compared."""
    smallest = min((result.trial.fraction for found in brackets for result in found.results), default=1.0)
    return "all rows" if smallest >= FULL else f"{smallest:.0%} of the rows"


def stability_claim(context: SearchContext, answer: RankAnswer) -> Evidence | None:
    """Whether seeds agree at the chosen learning rate; repeats disagree before the mean loss suffers.

    Against the pooled noise of the other ranks: needs two runs of the chosen one and two of another. With few of them
    the claim often stays undecided: the test is by the F distribution, one-sided 95 %.
    """
    own = [loss(context, result) for result in answer.chosen.results]
    others = [[loss(context, x) for x in m.results] for m in answer.measured if m.r != answer.chosen.r]
    usual, here = pool_seed_noise(others), pool_seed_noise([own])
    if not (usual.known and here.known and usual.variance > 0):
        return None
    ratio = (here.variance / usual.variance) ** 0.5
    rate = answer.chosen.learning_rate
    text = f"Seeds agree at learning rate {rate:g}: their sd is {ratio:.2g} times that of the other ranks."
    least = ratio / fdtri(here.degrees, usual.degrees, ONE_SIDED) ** 0.5
    most = ratio * fdtri(usual.degrees, here.degrees, ONE_SIDED) ** 0.5
    holds = True if most <= EDGE_OF_STABILITY else None
    if ratio > EDGE_OF_STABILITY and least > 1:
        holds = False
        text = text[:-1] + f": no, this is the edge of stability; {rate / 2:.2g} is safer."
    elif holds is None:
        text = text[:-1] + f": cannot tell, so few repeats leave {least:.2g} to {most:.2g} times."
    return Evidence(claim=text, value=ratio, unit="times", holds=holds)


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
    if lost > context.wishes.margin:
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
    """How many of a stage's alternatives were not run at all, and why."""
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
    """One claim for each alternative, the claim that the decision relies on, and what follows.

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
            holds=_challenge_holds(answer, contender, comparison),
        )
        for contender, comparison in answer.compared
    ]
    if not answer.changed and answer.ties:
        names = ", ".join(dict.fromkeys(describe(c.setting) for c in answer.ties))
        claims.append(note(f"Tie between {kept} and {names} within the noise: {kept} is kept."))
    return tuple(claims)


def _challenge_holds(answer: ChallengeAnswer, contender: Contender, comparison: Comparison) -> bool | None:
    """Whether the alternative taken was shown good, or the others shown worse; None where it is undecided."""
    if contender is answer.winner:
        return True
    return None if comparison.shown_better(len(answer.compared)) is None else True


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
    if better and not answer.changed:
        return f"{name} is better than {before} but did not run beside what is taken: {before} is kept."
    if better:
        return f"{name} is better than {before} too, but measured worse than the one taken."
    if answer.changed:
        return f"{name} is not chosen: it is not shown to be better than {before}."
    return f"{before} is kept: {name} is not shown better."


def alpha_flatness(context: SearchContext, answer: ChallengeAnswer) -> Evidence | None:
    """Whether every alpha is shown within the margin of 2r; alpha and learning rate trade off against each other."""
    if not answer.compared:
        return None
    differences = [comparison.difference for _, comparison in answer.compared] + [0.0]
    within = [comparison.within_margin() for _, comparison in answer.compared]
    flat = False if False in within else None if None in within else True
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
        margin=context.wishes.margin,
        holds=flat,
    )
