"""Learning rate x batch size, alpha, the truncation curve and cost by stage. Knows results, not plots."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from loratune.metrics import NLL
from loratune.reporting.facts import RunFacts
from loratune.reporting.rank_curves import Measured, Setting, measure, same_rate, settings
from loratune.values import HyperParameters, Stage, TrialResult, TrialState, Truncation

_OTHER_LAYERS = (Stage.TARGETS, Stage.VARIANT, Stage.LAYER_RANKS, Stage.FINAL)
"""Stages whose trials differ in what neither the grid nor the alpha curve shows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchCell:
    learning_rate: float
    batch_size: int
    nll: float | None
    """Mean over seeds, nats per supervised token; None where every trial diverged."""
    seeds: int


@dataclass(frozen=True, kw_only=True, slots=True)
class AlphaPoint:
    lora_alpha: float
    multiple: float
    """lora_alpha / r."""
    measured: Measured


@dataclass(frozen=True, kw_only=True, slots=True)
class StageCost:
    """A stage as planned and as it went."""

    name: str
    trials: int
    diverged: int
    stopped: int
    trained_tokens: int
    cost: float
    """Full-run equivalents."""
    seconds: float
    planned_trials: int = 0
    planned_seconds: float = 0.0


def batch_cells(facts: RunFacts) -> list[BatchCell]:
    """Learning rate x batch size at that stage's rank, alpha and fidelity; earlier trials that fit count.

    Empty below two batch sizes.
    """
    peers = _peers(facts, Stage.BATCH, ("r", "lora_alpha", "lora_dropout", "weight_decay"))
    groups: dict[tuple[str, int], list[TrialResult]] = defaultdict(list)
    for result in peers:
        values = result.trial.hyper_parameters
        if result.state is not TrialState.STOPPED:
            groups[same_rate(values.learning_rate), values.batch_size].append(result)
    cells = []
    for (_, batch_size), members in groups.items():
        finished = [result.nll for result in members if result.finished]
        cells.append(
            BatchCell(
                learning_rate=members[0].trial.hyper_parameters.learning_rate,
                batch_size=batch_size,
                nll=sum(finished) / len(finished) if finished else None,
                seeds=len(members),
            )
        )
    if len({cell.batch_size for cell in cells}) < 2:
        return []
    return sorted(cells, key=lambda cell: (cell.batch_size, cell.learning_rate))


def alpha_points(facts: RunFacts) -> list[AlphaPoint]:
    """NLL against alpha, all else equal; empty below two alphas."""
    peers = _peers(facts, Stage.ALPHA, ("r", "learning_rate", "batch_size", "lora_dropout", "weight_decay"))
    chosen: dict[float, Setting] = {}
    for setting in settings(peers):
        alpha = setting.hyper_parameters.lora_alpha
        if alpha not in chosen or len(setting.results) > len(chosen[alpha].results):
            chosen[alpha] = setting
    if len(chosen) < 2:
        return []
    ordered = [chosen[alpha] for alpha in sorted(chosen)]
    return [
        AlphaPoint(
            lora_alpha=setting.hyper_parameters.lora_alpha,
            multiple=setting.hyper_parameters.alpha_ratio,
            measured=measured,
        )
        for setting, measured in zip(ordered, measure(ordered, NLL.info, facts), strict=True)
    ]


def stage_costs(facts: RunFacts) -> list[StageCost]:
    """One entry per stage that was planned or run, in the order of the questions."""
    planned = {stage.name: stage for stage in facts.plan.stages}
    costs = []
    for stage in Stage:
        members = [result for result in facts.results if result.asked.stage is stage]
        plan = planned.get(str(stage))
        if members or plan:
            costs.append(
                StageCost(
                    name=str(stage),
                    trials=len(members),
                    diverged=sum(result.state is TrialState.DIVERGED for result in members),
                    stopped=sum(result.state is TrialState.STOPPED for result in members),
                    trained_tokens=sum(result.trained_tokens for result in members),
                    cost=sum(result.cost for result in members),
                    seconds=sum(result.seconds for result in members),
                    planned_trials=plan.trials if plan else 0,
                    planned_seconds=plan.seconds if plan else 0.0,
                )
            )
    return costs


def _peers(facts: RunFacts, stage: Stage, fixed: Sequence[str]) -> list[TrialResult]:
    """Search trials that share the `fixed` hyper-parameters and the fidelity with the stage's own trials.

    Where the stage's trials differ among themselves, with those that most of them share; where the strategy
    has no such stage (grid, random), with the recommended setting.
    """
    searched = [result for result in facts.results if result.asked.stage not in _OTHER_LAYERS]
    own = [result for result in searched if result.asked.stage is stage] or [
        result for result in searched if facts.is_recommended(result.trial.hyper_parameters)
    ]
    counts: dict[tuple[object, ...], int] = defaultdict(int)
    for result in own:
        counts[_place(result, fixed)] += 1
    if not counts:
        return []
    place = max(counts, key=lambda key: counts[key])
    return [result for result in searched if _place(result, fixed) == place]


def _place(result: TrialResult, fixed: Sequence[str]) -> tuple[object, ...]:
    values: HyperParameters = result.trial.hyper_parameters
    return result.trial.fraction, values.epochs, *(getattr(values, name) for name in fixed)


def truncation_sentence(found: Truncation) -> str:
    """What the curve shows, and what it does not."""
    text = (
        f"The rank-{found.r} adapter can be cut to rank {found.deployable} without training on"
        if found.deployable < found.r
        else f"No cut of the rank-{found.r} adapter was shown to be as good as whole"
    )
    entropy = sorted(layer.entropy_rank for layer in found.layers)
    if entropy:
        text += (
            f"; by the entropy of their singular values its layers use {entropy[0]:.1f} to {entropy[-1]:.1f} "
            f"ranks (median {entropy[len(entropy) // 2]:.1f})"
        )
    return (
        f"{text}. On {found.rows} validation rows; dotted line: the whole adapter. "
        "Training at a rank is measured above and decides; cuts beyond 8-fold are pessimistic."
    )
