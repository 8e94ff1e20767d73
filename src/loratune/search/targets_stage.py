"""Which layers to adapt, at equal adapter parameters: all linear ones, MLP, attention, queries and values.

An optional stage at the setting recommended so far. Knows layers by name and shape only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from loratune.maths.noninferiority import Verdict
from loratune.maths.targets import select_targets, target_groups
from loratune.search.challenge import ChallengeAnswer, Contender, challenge
from loratune.search.claims import alternatives_not_run, note
from loratune.search.compare import compare, seed_noise, unit
from loratune.search.procedure import Ledger, Procedure
from loratune.search.space import RateScale, unit_cost, usual_rate
from loratune.values import Evidence, HyperParameters, SearchContext, Stage, TrialResult

QUESTION = "Do other layers, with as many adapter parameters, do better?"
RESERVED_RUNS = 4
"""Three alternatives, and the best of them with a second seed."""
RESERVED_SHARE = 1 / 3
"""Share of the budget, at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetsAnswer:
    """The stage's result."""

    winner: Contender
    found: ChallengeAnswer
    names: Mapping[tuple[str, ...], str]
    """What each choice of target modules is called."""
    impossible: tuple[str, ...]
    """Choices whose rank at equal parameters would exceed a layer's smaller side."""

    def describe(self, setting: HyperParameters) -> str:
        """`the MLP only at rank 10`."""
        words = self.names.get(setting.target_modules, ", ".join(setting.target_modules))
        return f"{words} at rank {setting.r}"


def targets_reserve(context: SearchContext) -> float:
    """What the search keeps for this stage, in full-run equivalents; 0 where it is not asked for."""
    if not context.wishes.tune_targets:
        return 0.0
    return min(RESERVED_RUNS * unit_cost(context), RESERVED_SHARE * context.wishes.budget)


def parameters(context: SearchContext, setting: HyperParameters) -> int:
    """Adapter parameters of a setting."""
    chosen = select_targets(context.model.targets, setting.target_modules)
    return setting.r * sum(inputs + outputs for _, inputs, outputs in chosen)


def other_targets(
    context: SearchContext, setting: HyperParameters
) -> tuple[tuple[HyperParameters, ...], tuple[str, ...]]:
    """The other choices of layers, and the names of those that cannot have the same number of parameters.

    The rank is the one that comes nearest to the setting's parameters; alpha keeps its ratio to the rank
    unless the user fixed it; the learning rate follows the law from rank to rank.
    """
    present = select_targets(context.model.targets, setting.target_modules)
    settings, impossible = [], []
    for words, names in target_groups(context.model.targets).items():
        chosen = select_targets(context.model.targets, names)
        if chosen == present:
            continue
        r = max(1, round(parameters(context, setting) / sum(i + o for _, i, o in chosen)))
        if r > min(min(i, o) for _, i, o in chosen):
            impossible.append(words)
            continue
        law = [usual_rate(context, rank, setting.batch_size) for rank in (r, setting.r)]
        rate = RateScale.of(context).window(setting.learning_rate * law[0] / law[1], 1)[0]
        alpha = setting.lora_alpha if context.wishes.lora_alpha is not None else setting.alpha_ratio * r
        settings.append(replace(setting, r=r, lora_alpha=alpha, learning_rate=rate, target_modules=names))
    return tuple(settings), tuple(impossible)


def targets_stage(
    context: SearchContext,
    incumbent: Contender,
    *,
    seeds: int,
    earlier: Sequence[TrialResult],
    spare: float,
) -> Procedure[TargetsAnswer]:
    """Other layers are adopted only if shown better; of those shown better and as good, the fewest layers."""
    settings, impossible = other_targets(context, incumbent.setting)
    found = yield from challenge(
        context,
        incumbent,
        settings,
        stage=Stage.TARGETS,
        seeds=seeds,
        earlier=earlier,
        prefer=None,
        spare=spare,
    )
    names = {tuple(each): words for words, each in target_groups(context.model.targets).items()}
    return TargetsAnswer(
        winner=_cheapest(context, found, earlier), found=found, names=names, impossible=impossible
    )


def _cheapest(context: SearchContext, found: ChallengeAnswer, earlier: Sequence[TrialResult]) -> Contender:
    """The fewest layers among the alternatives shown better that are also shown as good as the best of them."""
    if not found.changed or not found.compared:
        return found.incumbent
    noise = seed_noise(context, (*earlier, *found.all_results))
    as_good = [
        contender
        for contender, comparison in found.compared
        if comparison.better(len(found.compared))
        and compare(context, contender.results, found.winner.results, noise).verdict is Verdict.ADEQUATE
    ]
    return min(
        [found.winner, *as_good],
        key=lambda c: len(select_targets(context.model.targets, c.setting.target_modules)),
    )


def targets_claims(context: SearchContext, answer: TargetsAnswer, ledger: Ledger) -> tuple[Evidence, ...]:
    """One claim for each choice of layers compared, what was left out, and what follows."""
    found, before = answer.found, answer.describe(answer.found.incumbent.setting)
    claims = [
        Evidence(
            claim=(
                f"Adapting {answer.describe(contender.setting)} (learning rate "
                f"{contender.setting.learning_rate:g}, {_share(context, contender, found)} of the parameters) "
                f"is better than {before}."
            ),
            value=comparison.difference,
            unit=unit(context),
            interval=comparison.interval,
            margin=comparison.margin,
            holds=comparison.shown_better(len(found.compared)),
        )
        for contender, comparison in found.compared
    ]
    claims += [
        note(f"Adapting {words} was not tried: its layers are too small for the same number of parameters.")
        for words in answer.impossible
    ]
    settings, _ = other_targets(context, found.incumbent.setting)
    claims += alternatives_not_run(Stage.TARGETS, settings, found.all_results, ledger)
    if found.failed:
        claims.append(note(f"Other layers: {found.failed} of the runs diverged."))
    taken = answer.describe(answer.winner.setting)
    if answer.winner is found.incumbent:
        claims.append(note(f"{taken[:1].upper()}{taken[1:]} is kept: nothing else was shown better."))
    elif answer.winner is not found.winner:
        best = answer.describe(found.winner.setting)
        claims.append(note(f"Tie between {best} and {taken} within the margin: the fewer layers are taken."))
    return tuple(claims)


def _share(context: SearchContext, contender: Contender, found: ChallengeAnswer) -> str:
    ratio = parameters(context, contender.setting) / parameters(context, found.incumbent.setting)
    return f"{ratio:.0%}"
