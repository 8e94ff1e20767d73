"""The truncation curve: a trained adapter cut to lower ranks, all cuts evaluated together on the same rows.

Knows the statistics of the search and a runner, which cuts and evaluates; decides nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from time import monotonic

import numpy as np
import numpy.typing as npt

from loratune.analysis.subject import Subject
from loratune.costs.readings import affordable_rows, cut_ranks
from loratune.data.table import TokenTable
from loratune.engine.cutting import Cuts, CutScore, CutScores
from loratune.engine.evaluate import Evaluation
from loratune.lora.layout import Adapter, Target
from loratune.lora.spectrum import decompose, threshold_ranks
from loratune.maths.noninferiority import SeedNoise, Verdict
from loratune.runners.runner import AdapterFile, CutsJob, CutsScored, Runner, only
from loratune.search.compare import compare
from loratune.values import (
    CutPoint,
    HyperParameters,
    LayerSpectrum,
    SearchContext,
    Trial,
    TrialResult,
    Truncation,
)

Floats = npt.NDArray[np.float64]

ENERGY = 0.9


def stable_rank(singular: Floats) -> float:
    """‖σ‖² / σ₁², in [1, rank]; 0 for a zero matrix. `singular` [R] in descending order, here and below."""
    return float((singular**2).sum() / singular[0] ** 2) if singular[0] > 0 else 0.0


def entropy_rank(singular: Floats) -> float:
    """exp of the entropy of σ / Σσ, in [1, rank] (Roy and Vetterli 2007); 0 for a zero matrix."""
    present = singular[singular > 0]
    shares = present / present.sum()
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(present) else 0.0


def energy_rank(singular: Floats, share: float = ENERGY) -> int:
    """The smallest k whose first k values hold `share` of Σσ²; 0 for a zero matrix."""
    energy = np.cumsum(singular**2)
    return int(np.searchsorted(energy, share * energy[-1] * (1 - 1e-12))) + 1 if energy[-1] > 0 else 0


HEALING = 0.05
"""Share of a trial's steps for which a cut adapter is trained on."""
FEWEST_HEALING_STEPS = 10
"""Fewest steps of it: in one or two the warm-up alone would take place."""
_ADEQUATE = {Verdict.ADEQUATE: True, Verdict.INFERIOR: False, Verdict.UNDECIDED: None}
_SAME_ADAPTER = SeedNoise(variance=0.0, degrees=inf)
"""The cuts are of one trained adapter: nothing varies from seed to seed."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TruncationRun:
    """Measures the curve of one adapter."""

    runner: Runner
    subject: Subject
    context: SearchContext

    def measure(self, result: TrialResult, adapter: AdapterFile, *, heal: Sequence[int] = ()) -> Truncation:
        """Cut `adapter`, of the trial with that `result`, to the powers of two below its rank.

        `heal` are ranks at which the cut adapter is also trained on for 5 % of the trial's steps.
        """
        started = monotonic()
        r = result.asked.hyper_parameters.r
        ranks, healed = cut_ranks(r), tuple(k for k in heal if k < r)
        cuts = Cuts(uniform=ranks, threshold=ranks, healed=healed, healing=self._healing(result.asked))
        models = 2 * len(ranks) + len(healed)
        rows = self._rows(models)
        done = only(
            self.runner.run(
                [
                    CutsJob(
                        adapter=adapter,
                        trial=result.asked,
                        cuts=cuts,
                        rows=tuple(rows.tolist()),
                        labels=self.subject.scoring.asks_labels,
                    )
                ]
            )
        )
        assert isinstance(done, CutsScored)
        table = self.subject.validation.take(rows)
        whole = _of_rows(result, rows, table)
        tokens = 0.5 * models * self.context.costs.evaluation_passes * int(table.lengths.sum())
        return Truncation(
            key=result.asked.key,
            r=r,
            learning_rate=result.asked.hyper_parameters.learning_rate,
            nll=whole.nll,
            rows=len(rows),
            margin=self.context.wishes.margin,
            points=self._points(done.found.scores, whole, table, rows),
            layers=_layers(done.found),
            cost=tokens / self.context.full_run + cuts.healing * len(healed),
            seconds=monotonic() - started,
        )

    def _rows(self, models: int) -> npt.NDArray[np.int64]:
        """Row numbers of the validation table, ascending; the same for every run of a study."""
        total = len(self.subject.validation)
        count = affordable_rows(self.context, models, total)
        return np.sort(np.random.default_rng(self.context.wishes.seed).permutation(total)[:count])

    def _points(
        self,
        scores: Sequence[CutScore],
        whole: TrialResult,
        table: TokenTable,
        rows: npt.NDArray[np.int64],
    ) -> tuple[CutPoint, ...]:
        labels = self.context.data.validation_labels
        weights = self.context.data.validation_weights
        context = self.context.changed(
            validation_weights=None if weights is None else weights[rows],
            validation_labels=None if labels is None else labels[rows],
        )
        points = []
        for score in scores:
            own = self._as_result(whole, score.evaluation, table)
            comparison = compare(context, [own], [whole], _SAME_ADAPTER)
            points.append(
                CutPoint(
                    way=score.way,
                    rank=score.rank,
                    parameters=score.parameters,
                    nll=own.nll,
                    loss=comparison.difference,
                    interval=comparison.interval,
                    adequate=_ADEQUATE[comparison.verdict],
                )
            )
        return tuple(points)

    def _as_result(self, whole: TrialResult, evaluation: Evaluation, table: TokenTable) -> TrialResult:
        """An evaluation in the form that results are compared in."""
        metrics, scores = self.subject.scoring.measure(evaluation, table)
        return replace(
            whole,
            nll=evaluation.nll,
            metrics=metrics,
            example_nll=evaluation.example_nll,
            example_scores=scores,
        )

    def _healing(self, asked: Trial) -> float:
        """Share of the trial's steps for which its cuts are trained on."""
        return max(HEALING, FEWEST_HEALING_STEPS / len(self.subject.batches(asked)))


def patterned(
    setting: HyperParameters, adapter: Adapter, targets: Sequence[Target]
) -> HyperParameters | None:
    """`setting` with a rank for each of its `targets`, from the singular values of a trained adapter.

    One threshold for all layers, the lowest that keeps the parameters of the uniform rank; each layer keeps at
    least one rank. None where the adapter has no more ranks than the setting, or not all of its layers.
    """
    parts = decompose(adapter)
    known = dict(zip(adapter.layout.targets, parts.spectra, strict=True))
    if setting.r >= adapter.layout.r or not set(targets) <= known.keys():
        return None
    costs = [target.in_features + target.out_features for target in targets]
    spectra = [known[target] for target in targets]
    ranks = threshold_ranks(spectra, costs, setting.r * sum(costs), fewest=1)
    pattern = tuple((t.name, k) for t, k in zip(targets, ranks, strict=True) if k != setting.r)
    return replace(setting, rank_pattern=pattern)


def _of_rows(result: TrialResult, rows: npt.NDArray[np.int64], table: TokenTable) -> TrialResult:
    """A result as if only these validation rows had been evaluated."""
    assert result.example_nll is not None
    nll = result.example_nll[rows]
    return replace(
        result,
        nll=float(nll.sum() / max(1, int(table.supervised_counts.sum()))),
        example_nll=nll,
        example_scores={name: scores[rows] for name, scores in result.example_scores.items()},
    )


def _layers(found: CutScores) -> tuple[LayerSpectrum, ...]:
    return tuple(
        LayerSpectrum(
            module=name,
            stable_rank=stable_rank(spectrum),
            entropy_rank=entropy_rank(spectrum),
            energy_rank=energy_rank(spectrum),
        )
        for name, spectrum in found.spectra
    )
