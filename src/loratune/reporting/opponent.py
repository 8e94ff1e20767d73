"""A fair opponent: rank 16 with the best of four learning rates, which anybody can try without a search.

From trials of the search, on the validation rows; nothing is trained for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from statistics import mode

from loratune.metrics import NLL, Metric, Rows, metrics
from loratune.reporting.facts import Gain, ModelScores, RunFacts
from loratune.reporting.wording import rate
from loratune.search.space import stands_for
from loratune.values import Stage, TrialResult
from loratune.values.hyperparameters import PUBLISHED_RATES

RANK = 16
BATCH_SIZE = 16
LEARNING_RATES = PUBLISHED_RATES
OPPONENT = "best of 4 learning rates at rank 16"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Opponent:
    """The best of the four, or which of them the search did not run."""

    tried: tuple[float, ...]
    """The learning rates that stand for the four, as run; fewer where some are missing."""
    best: TrialResult | None = None
    """Lowest validation NLL; None where one of the four is missing or all diverged."""

    @property
    def scores(self) -> ModelScores:
        """Scores on validation alone: it was never evaluated on the test rows."""
        return ModelScores(validation=dict(self.best.metrics) if self.best else {})

    @property
    def sentence(self) -> str:
        """What stands on the page, or why nothing does."""
        tried = ", ".join(map(rate, self.tried))
        if self.best:
            chosen = rate(self.best.trial.hyper_parameters.learning_rate)
            return f"The {OPPONENT}: {chosen} of {tried}; batch size {BATCH_SIZE}, all rows, on validation."
        ran = (
            f"of its learning rates the search ran {tried} on all rows"
            if tried
            else "the search ran none of it"
        )
        return (
            f"Missing: the {OPPONENT} ({', '.join(map(rate, LEARNING_RATES))}; batch size {BATCH_SIZE}, "
            f"all rows); {ran}."
        )


def fair_opponent(facts: RunFacts) -> Opponent:
    """The opponent among the search's trials that had the epochs with which ranks were compared."""
    compared = [
        each.trial.hyper_parameters.epochs for each in facts.results if each.asked.stage is Stage.RANK
    ]
    epochs = mode(compared) if compared else facts.decision.hyper_parameters.epochs
    runs = [each for each in facts.results if _stands_for_it(each, epochs)]
    tried = [near for wanted in LEARNING_RATES if (near := _nearest(wanted, runs)) is not None]
    rates = tuple(dict.fromkeys(tried))
    if len(rates) < len(LEARNING_RATES):
        return Opponent(tried=rates)
    ended = [each for each in runs if each.finished and each.trial.hyper_parameters.learning_rate in rates]
    return Opponent(tried=rates, best=min(ended, key=lambda each: each.nll, default=None))


def fair_gains(facts: RunFacts) -> tuple[Gain, ...]:
    """Over the opponent, paired over the validation rows; empty without it. As the run stored them, since a report
    has no code of a user's metric; in runs of earlier versions, by the metrics that are built in.
    """
    if facts.fair_gains is not None:
        return facts.fair_gains
    return gains_over_opponent(facts, metrics(), Rows(weights=facts.validation_weights))


def gains_over_opponent(facts: RunFacts, known: Sequence[Metric], rows: Rows) -> tuple[Gain, ...]:
    """Paired over the validation rows, in the NLL and in the shown metric; empty without opponent.

    Args:
        known: the metrics among which the shown one is.
        rows: what is known of the validation rows.
    """
    theirs = fair_opponent(facts).best
    ours = next(
        (
            each
            for each in facts.results
            if each.asked.stage is Stage.FINAL
            and each.finished
            and facts.is_recommended(each.trial.hyper_parameters)
        ),
        None,
    )
    if theirs is None or ours is None:
        return ()
    gains = []
    for metric in known:
        if metric.name not in (NLL.name, facts.shown_metric) or (metric.info.by_nll and metric is not NLL):
            continue
        mine, other = metric.rows_of(ours), metric.rows_of(theirs)
        if mine is not None and other is not None and mine.shape == other.shape and metric.comparable(rows):
            gains.append(
                Gain.from_rows(mine, other, over=OPPONENT, split="validation", metric=metric, rows=rows)
            )
    return tuple(gains)


def _stands_for_it(result: TrialResult, epochs: float) -> bool:
    values = result.trial.hyper_parameters
    ours = values.r == RANK and not values.rank_pattern and values.batch_size == BATCH_SIZE
    of_search = result.asked.stage is not Stage.FINAL
    return ours and of_search and result.trial.fraction == 1 and values.epochs == epochs


def _nearest(wanted: float, runs: list[TrialResult]) -> float | None:
    rates = {each.trial.hyper_parameters.learning_rate for each in runs}
    near = min(rates, key=lambda each: abs(log(each / wanted)), default=None)
    return near if near is not None and stands_for(near, wanted) else None
