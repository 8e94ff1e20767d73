"""Plays a strategy to its end against a table of measured results, and judges its answer by the table's truth."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite, log2
from typing import Any, Protocol

import numpy as np

from instant import InstantRunner
from loratune.maths.noninferiority import (
    SeedNoise,
    compare_means,
    compare_nll,
    pool_seed_noise,
    row_variance,
)
from loratune.search.bracket import Bracket, bracket
from loratune.search.procedure import Ledger, Procedure, ask, decide
from loratune.search.space import RateScale, base_batch, hyper_parameters, trial, usual_rate
from loratune.search.strategy import Strategy
from loratune.tuning.driver import play as search
from loratune.values import HyperParameters, SearchContext, Trial, TrialResult
from loratune.values.plain import to_plain
from simulated import Cell, TableRunner

Key = tuple[int, float, int, float]
"""Rank, learning rate, batch size, alpha."""


class Runner(Protocol):
    """Answers trials at once, without training."""

    def run(self, trials: Iterable[Trial], context: SearchContext) -> tuple[TrialResult, ...]: ...


def play(strategy: Strategy, runner: Runner) -> tuple[TrialResult, ...]:
    """Runs a strategy to its end; returns the history."""
    answers = InstantRunner(measure=lambda trials: runner.run(trials, strategy.context))
    return tuple(search(strategy, answers))


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How one answer did on one task."""

    task: str
    chosen: Key
    regret: float
    """Relative NLL above the best cell of the table; infinite where the choice diverges."""
    nats: float
    """The same in nats."""
    cost: float
    """Full-run equivalents."""
    cost_share: float
    """Of what the whole table cost."""
    worse: bool
    """Whether it is significantly worse than the best cell (two-sided 95 %, by rows and seeds of the two)."""
    inferior: bool
    """Whether the rank's best cell loses more than the margin to the largest rank's."""
    overshoot: float
    """Doublings above the smallest adequate rank; 0 below it."""
    evidence: tuple[dict[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a choice that diverges has no regret."""
        names = ("rank", "learning_rate", "batch_size", "lora_alpha")
        return {
            "task": self.task,
            "chosen": dict(zip(names, self.chosen, strict=True)),
            "regret": self.regret if isfinite(self.regret) else None,
            "cost_share": self.cost_share,
            "rank_inferior": self.inferior,
            "evidence": list(self.evidence),
        }


def cell_means(runner: TableRunner) -> Mapping[Key, float]:
    """Mean NLL of each cell over seeds and repeats at the end of the runs: the table's truth."""
    values: dict[Key, list[float]] = {}
    for cell in runner.full:
        values.setdefault(_key(cell), []).append(cell.nll)
    return {key: float(np.mean(nlls)) for key, nlls in values.items()}


def score(
    runner: TableRunner,
    setting: HyperParameters,
    cost: float,
    margin: float,
    evidence: Sequence[dict[str, Any]] = (),
) -> Score:
    """Judges a setting by the table's truth."""
    means = cell_means(runner)
    ranks = sorted({key[0] for key in means})
    best = {r: min(nll for key, nll in means.items() if key[0] == r) for r in ranks}
    adequate = [r for r in ranks if best[r] - best[ranks[-1]] <= margin]
    snapped = runner.snap(setting)
    chosen: Key = (setting.r, setting.learning_rate, setting.batch_size, setting.lora_alpha)
    if snapped is not None:
        chosen = _key(snapped)
    lowest = min(means.values())
    return Score(
        task=runner.task,
        chosen=chosen,
        regret=(means.get(chosen, inf) - lowest) / lowest,
        nats=means.get(chosen, inf) - lowest,
        cost=cost,
        worse=chosen not in means or _worse(runner, chosen, min(means, key=means.__getitem__)),
        cost_share=cost / sum(max(len(cell.repeats), 1) for cell in runner.full),
        inferior=setting.r not in adequate,
        overshoot=max(log2(setting.r / adequate[0]), 0.0),
        evidence=tuple(evidence),
    )


def _worse(runner: TableRunner, chosen: Key, best: Key) -> bool:
    """By the paired test, all runs of both cells in it; a single run each has the noise that the table assumes."""
    if chosen == best:
        return False
    cells = [[cell for cell in runner.full if _key(cell) == key] for key in (chosen, best)]
    losses = [[cell.nll for cell in own] for own in cells]
    noise = pool_seed_noise(losses)
    if not noise.known:
        noise = SeedNoise(variance=(runner.noise * float(np.mean(losses[1]))) ** 2, degrees=inf)
    rows = [
        [runner.examples.get((*key[:3], float(cell.seed))) for cell in own]
        for key, own in zip((chosen, best), cells, strict=True)
    ]
    if all(row is not None for own in rows for row in own):
        stacked = [np.array(own, dtype=np.float64) for own in rows]
        weights = np.ones(stacked[0].shape[1])
        parts = [row_variance(own, weights) for own in stacked if len(own) > 1]
        noise = replace(noise, rows=float(np.mean(parts)) if parts else 0.0)
        interval = compare_nll(stacked[0], stacked[1], weights, noise, 0.0).interval
    else:
        interval = compare_means(losses[0], losses[1], noise, 0.0).interval
    return interval is not None and interval[0] > 0


def play_and_score(strategy: Strategy, runner: TableRunner) -> Score:
    """One strategy on one task."""
    history = play(strategy, runner)
    decision = strategy.decide(history)
    cost = sum(result.cost for result in history)
    evidence = to_plain(decision.evidence)
    return score(runner, decision.hyper_parameters, cost, strategy.context.wishes.margin, evidence)


def always(runner: TableRunner, context: SearchContext, rank: int | None) -> Score | None:
    """A fixed rank (None: the largest) at the best learning rate of its bracket, one seed."""
    r = max(context.wishes.ranks) if rank is None else rank
    if r not in context.wishes.ranks:
        return None
    batch = base_batch(context)

    def procedure(ledger: Ledger) -> Procedure[Bracket]:
        return bracket(
            lambda rate: trial(hyper_parameters(context, r=r, rate=rate, batch=batch), context.wishes.seed),
            scale=RateScale.of(context),
            centre=usual_rate(context, r, batch),
            count=3,
            extensions=3,
            refine=False,
        )

    history: list[TrialResult] = []
    while trials := ask(procedure, context, history):
        history.extend(runner.run(trials, context))
    rate = decide(procedure, context, history).best
    setting = hyper_parameters(context, r=r, rate=rate, batch=batch)
    return score(runner, setting, sum(result.cost for result in history), context.wishes.margin)


def _key(cell: Cell) -> Key:
    return cell.rank, cell.learning_rate, cell.batch_size, cell.lora_alpha
