"""Stages in a few words: as planned, and as they went. Decides nothing."""

from collections.abc import Sequence
from typing import Any

from loratune.maths.curves import elbow
from loratune.search.challenge import ChallengeAnswer
from loratune.search.compare import mean_loss, unit
from loratune.search.effort import Effort
from loratune.search.rank_answer import RankAnswer
from loratune.values import SearchContext, Stage, StageSummary, TrialResult

FIELDS = {Stage.BETA: "beta", Stage.BATCH: "batch_size", Stage.ALPHA: "lora_alpha", Stage.EPOCHS: "epochs"}


def stage_summary(
    stage: Stage,
    question: str,
    answer: str,
    history: Sequence[TrialResult],
    details: dict[str, Any] | None = None,
) -> StageSummary:
    """Counts and costs of the trials that were asked for this stage."""
    own = [result for result in history if result.asked.stage is stage]
    return StageSummary(
        name=str(stage),
        question=question,
        answer=answer,
        trials=len(own),
        diverged=sum(not result.finished for result in own),
        cost=sum(result.cost for result in own),
        seconds=sum(result.seconds for result in own),
        details=details or {},
    )


def plan_note(context: SearchContext, effort: Effort, stage: Stage) -> str:
    """What the plan tries in this stage."""
    if stage is Stage.RANK:
        return _rank_note(context, effort)
    if stage is Stage.BETA:
        return (
            f"{_number(effort.betas, 'other beta')}, each at two learning rates"
            if effort.betas
            else "left out"
        )
    if stage is Stage.BATCH:
        return _number(effort.batches, "other batch size") if effort.batches else "left out"
    if stage is Stage.ALPHA:
        given = (
            f"fixed at {context.wishes.lora_alpha:g}" if context.wishes.lora_alpha is not None else "left out"
        )
        return _number(effort.alphas, "other alpha") if effort.alphas else given
    if stage is Stage.EPOCHS:
        return _number(effort.epochs, "other epoch count") if effort.epochs else "left out"
    return "asked for" if effort.regularisers else "only if validation NLL rises while training NLL falls"


def _rank_note(context: SearchContext, effort: Effort) -> str:
    margin = f"margin {context.wishes.margin:g} {unit(context)}"
    if effort.fraction < 1:
        return f"{_number(effort.rates, 'learning rate')} on {effort.fraction:.0%} of the rows"
    first = f"{_number(effort.rates, 'learning rate')} at "
    first += (
        f"rank {effort.ranks[0]}" if len(effort.ranks) == 1 else f"each of {len(effort.ranks)} ranks at once"
    )
    seeds = f"{_number(effort.looks[0], 'test seed')}, {effort.looks[1]} where undecided"
    return f"{first}, then the way down from rank {max(effort.ranks)}; {seeds}; {margin}"


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def rank_words(answer: RankAnswer) -> str:
    """The first stage's answer."""
    chosen = answer.chosen
    how = "shown as good as" if answer.settled else "not shown as good as"
    text = f"rank {chosen.r} at learning rate {chosen.learning_rate:g}"
    if answer.reference is None or len(answer.measured) < 2:
        return f"{text}, not compared with other ranks"
    if answer.reference.r == chosen.r:
        return f"{text}, the largest: no smaller one was shown as good"
    return f"{text}, {how} rank {answer.reference.r}"


def rank_details(context: SearchContext, answer: RankAnswer) -> dict[str, Any]:
    """Numbers of the rank curve for the report, Kneedle's elbow among them (drawn, never deciding)."""
    known = [m for m in answer.measured if m.results]
    losses = [mean_loss(context, m.results) for m in known]
    return {
        "ranks": [
            {
                "r": m.r,
                "learning_rate": m.learning_rate,
                "cell_rate": m.results[0].trial.hyper_parameters.learning_rate,
                "loss": value,
                "seeds": len(m.results),
                "tried": [[rate, nll] for rate, nll in m.bracket.tried if nll < float("inf")]
                if m.bracket
                else [],
            }
            for m, value in zip(known, losses, strict=True)
        ],
        "power_law": None
        if answer.law is None
        else {"limit": answer.law.limit, "scale": answer.law.scale, "exponent": answer.law.exponent},
        "elbow": elbow([m.r for m in known], losses, larger_is_better=False),
        "learning_rate_correction": answer.correction,
        "seed_sd": answer.noise.variance**0.5 if answer.noise.known else None,
    }


def challenge_words(stage: Stage, answer: ChallengeAnswer) -> str:
    """A later stage's answer."""
    setting = answer.winner.setting
    if stage is Stage.REGULARISATION:
        text = f"dropout {setting.lora_dropout:g}, weight decay {setting.weight_decay:g}"
    else:
        text = f"{stage} {getattr(setting, FIELDS[stage]):g} at {setting.learning_rate:g}"
    return f"{text}: better" if answer.changed else f"{text}: kept, nothing was shown better"
