"""One sentence under each figure, computed from the same tuples as the figure; why a figure is missing."""

from collections.abc import Sequence

from loratune.reporting.facts import Gain, PackSpan, RunFacts
from loratune.reporting.later_stages import AlphaPoint, BatchCell
from loratune.reporting.opponent import fair_gains
from loratune.reporting.rank_curves import GapPoint, RankCurve
from loratune.reporting.wording import count, duration, interval, money, rate
from loratune.values import Stage, StageSummary

_WORDS = {
    Stage.RANK: ("rank",),
    Stage.BETA: ("beta",),
    Stage.BATCH: ("batch",),
    Stage.ALPHA: ("alpha",),
    Stage.EPOCHS: ("epochs",),
    Stage.REGULARISATION: ("regularis", "dropout", "weight decay", "over-fit"),
    Stage.FINAL: ("final",),
}


def headline_gains(facts: RunFacts) -> list[Gain]:
    """Over the fair opponent where there is one; then those on the test split where there is one, in NLL and the
    shown metric, over the default recipe first.
    """
    split = "test" if any(gain.split == "test" for gain in facts.gains) else "validation"
    shown = [g for g in facts.gains if g.split == split and (g.info.by_nll or g.metric == facts.shown_metric)]
    return [*fair_gains(facts), *sorted(shown, key=lambda gain: gain.over != "default recipe")]


def all_gains(facts: RunFacts) -> list[Gain]:
    """The headline's, then those of the validation split in NLL, on which the choices were made."""
    headline = headline_gains(facts)
    seen = [g for g in facts.gains if g.split == "validation" and g.info.by_nll and g not in headline]
    return [*headline, *sorted(seen, key=lambda gain: gain.over != "default recipe")]


def gain_sentence(gain: Gain) -> str:
    """`test NLL 0.0120 nats lower than the default recipe (95 % [0.008, 0.016])`."""
    sign = 1 if gain.value >= 0 else -1
    info, name = gain.info, f"{gain.split} {gain.info.title}"
    amount = f"{info.amount(gain.value)} {info.unit} {info.better(gain.value)}"
    text = f"{name} {amount} than the {gain.over}" if gain.value else f"{name} as of the {gain.over}"
    if gain.interval is None:
        return text
    low, high = sorted(sign * end for end in gain.interval)
    chance = "; the interval contains 0, so this may be chance" if gain.value and low <= 0 <= high else ""
    return f"{text} (95 % {interval((low, high))}{chance})"


def rank_sentence(own: RankCurve, single: RankCurve, facts: RunFacts) -> str:
    """What the pair of rank curves shows."""
    if len(own.points) < 2:
        return ""
    first, last = own.points[0].rank, own.points[-1].rank
    text = f"At their own learning rates, ranks {first} to {last} lie within {_spread(own)} of each other"
    if single.points:
        text += (
            f"; at the single learning rate {rate(single.points[0].learning_rate)} the same comparison spans "
            f"{_spread(single)}"
        )
    recommended = facts.decision.hyper_parameters.r
    chosen = next((point for point in own.points if point.rank == recommended), None)
    if chosen:
        text += f". Recommended: rank {chosen.rank} with {count(chosen.parameters)} parameters"
    return text + "."


def interval_sentence(curve: RankCurve) -> str:
    """What the bars of a rank curve are."""
    return {
        "seeds": "Bars: 95 % intervals over seeds, their variance pooled over the settings shown.",
        "rows": "Bars: 95 % intervals over validation rows; no setting was repeated with another seed.",
    }.get(curve.points[0].measured.interval_over if curve.points else "", "")


def metric_sentence(curve: RankCurve) -> str:
    """Best and worst rank by the task metric."""
    if len(curve.points) < 2:
        return ""
    info = curve.metric
    ordered = sorted(curve.points, key=lambda point: point.measured.value, reverse=info.larger_is_better)
    best, worst = ordered[0], ordered[-1]
    if best.measured.value == worst.measured.value:
        return f"{info.title[:1].upper()}{info.title[1:]} is {info.text(best.measured.value)} at every rank."
    return (
        f"Best {info.title}: {info.text(best.measured.value)} at rank {best.rank}; "
        f"{'lowest' if info.larger_is_better else 'highest'}: {info.text(worst.measured.value)} at rank {worst.rank}."
    )


def batch_sentence(cells: Sequence[BatchCell]) -> str:
    """The best cell, and whether it lies inside the grid."""
    found = [(cell.nll, cell) for cell in cells if cell.nll is not None]
    if not found:
        return ""
    nll, best = min(found, key=lambda pair: pair[0])
    rates = sorted({cell.learning_rate for cell in cells if cell.batch_size == best.batch_size})
    inside = rates[0] < best.learning_rate < rates[-1]
    place = "inside the measured range" if inside else "at the edge of the measured range"
    return (
        f"Lowest NLL {nll:.4f} at learning rate {rate(best.learning_rate)} and batch size {best.batch_size}, "
        f"{place} of learning rates for that batch size."
    )


def alpha_sentence(points: Sequence[AlphaPoint], facts: RunFacts) -> str:
    """Flat within the margin, or which is best."""
    if not points:
        return ""
    values = [point.measured.value for point in points]
    best = min(points, key=lambda point: point.measured.value)
    spread = max(values) - min(values)
    margin = facts.margin_in_nats
    if spread <= margin:
        return f"Flat: all alphas lie within {spread:.4f} nats, below the margin of {margin:g}."
    return f"Lowest NLL {best.measured.value:.4f} at alpha {best.lora_alpha:g} ({best.multiple:g} r)."


def gap_sentence(points: Sequence[GapPoint]) -> str:
    """Where over-fitting shows."""
    if not points:
        return ""
    worst = max(points, key=lambda point: point.gap)
    if worst.gap <= 0:
        return "No rank has a validation NLL above its training NLL: no sign of over-fitting."
    return (
        f"Largest gap: {worst.gap:.4f} nats at rank {worst.rank} "
        f"(training {worst.train:.4f}, validation {worst.validation:.4f})."
    )


def curves_sentence(facts: RunFacts) -> str:
    """Whether the final run had ended its descent."""
    final = [
        result
        for result in facts.results
        if result.asked.stage is Stage.FINAL
        and result.curve
        and facts.is_recommended(result.trial.hyper_parameters)
    ]
    if not final:
        return ""
    curve = final[0].curve
    best = min(curve, key=lambda point: point.validation_nll)
    where = "at its end" if best is curve[-1] else f"after {best.fraction:.0%} of its steps"
    return f"The final run's validation loss was lowest {where}; on all validation rows it is {final[0].nll:.4f}."


def cost_sentence(facts: RunFacts) -> str:
    """Actual against predicted time, and against one trial after another."""
    cost = facts.cost
    text = f"{len(facts.results)} trials, {count(facts.trained_tokens)} tokens, {duration(cost.seconds)}"
    if cost.predicted_seconds > 0:
        share = cost.seconds / cost.predicted_seconds
        text += f" ({share:.2f} x the predicted {duration(cost.predicted_seconds)})"
    if cost.sequential_seconds is not None and cost.seconds > 0:
        text += f"; one after another they would take about {duration(cost.sequential_seconds)}"
    if facts.proxy is not None:
        text += f"; before that {facts.proxy.trials} trials on {facts.proxy.model}, {duration(facts.proxy.seconds)}"
    if cost.price_per_hour:
        text += f"; price {money(cost.seconds, cost.price_per_hour)} at {cost.price_per_hour:g} an hour"
        if cost.predicted_seconds > 0:
            text += f", predicted {money(cost.predicted_seconds, cost.price_per_hour)}"
    return text + "."


def timeline_sentence(facts: RunFacts) -> str:
    """Where the time went, and how full the packs were; empty where it is not known."""
    parts = [f"{name} {duration(seconds)}" for name, seconds in facts.cost.timeline if seconds >= 0.05]
    if not parts:
        return ""
    text = ", ".join(parts)
    return f"{text[0].upper()}{text[1:]}; {facts.cost.mean_trials_in_pack:.1f} trials in the pack on average."


def packs_sentence(packs: Sequence[PackSpan]) -> str:
    """The most trials that trained at once, and for how long any did."""
    if not packs:
        return ""
    busy = sum(each.ended - each.began for each in packs)
    most = max(each.trials for each in packs)
    return (
        f"Up to {most:.0f} trials trained side by side; something trained in {duration(busy)} of "
        f"{duration(packs[-1].ended)} up to the last step."
    )


def missing(facts: RunFacts, stage: Stage) -> str:
    """Why a stage has nothing to show, in one sentence."""
    trials = [result for result in facts.results if result.asked.stage is stage]
    if trials:
        finished = sum(result.finished for result in trials)
        ranks = {result.trial.hyper_parameters.r for result in trials if result.finished}
        if stage is Stage.RANK and len(ranks) == 1:
            return f"Too little to draw: only rank {ranks.pop()} was measured."
        return f"Too little to draw: {finished} of {len(trials)} trials of this stage finished."
    planned_stage = _summary(facts.decision.stages, stage)
    if planned_stage:
        return f"Not run: {planned_stage.answer.rstrip('.')}."
    if any(word in text.lower() for text in facts.plan.dropped for word in _WORDS.get(stage, ())):
        return "Not run; the reason is given under what the budget left out."
    if planned := next((each for each in facts.plan.stages if each.name == stage), None):
        if planned.note.startswith("only if") and not facts.cut_by_clock:
            return f"Not needed: it is asked {planned.note}."
        return "Planned, but the search ended before it."
    return f"Not part of this plan of the strategy “{facts.strategy}”."


def _summary(stages: Sequence[StageSummary], stage: Stage) -> StageSummary | None:
    return next((each for each in stages if each.name == stage and each.answer), None)


def _spread(curve: RankCurve) -> str:
    """How far apart the best and the worst rank are: `0.0012 nats`."""
    info, values = curve.metric, [point.measured.value for point in curve.points]
    return f"{info.amount(info.scale * (max(values) - min(values)))} {info.unit}"
