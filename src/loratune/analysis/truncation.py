"""The truncation curve: a trained adapter cut to lower ranks, all cuts evaluated together on the same rows.

Knows the engine and the statistics of the search; decides nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from time import monotonic

import numpy as np
import numpy.typing as npt

from loratune.costs.readings import affordable_rows, cut_ranks
from loratune.data.table import TokenTable
from loratune.engine.evaluate import Evaluation
from loratune.engine.pack import PackEngine
from loratune.lora.layout import Adapter, Target
from loratune.lora.spectrum import Decomposition, decompose
from loratune.maths.noninferiority import SeedNoise, Verdict
from loratune.search.compare import compare
from loratune.values import (
    Cut,
    CutPoint,
    HyperParameters,
    LayerSpectrum,
    SearchContext,
    Stage,
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


def threshold_ranks(
    spectra: Sequence[Floats], costs: Sequence[int], budget: float, *, fewest: int = 0
) -> tuple[int, ...]:
    """Of each layer the number of singular values above one threshold, the lowest that `budget` pays for.

    Args:
        spectra: singular values of each layer, in descending order.
        costs: parameters of one rank of each layer.
        budget: parameters of all layers together.
        fewest: ranks that every layer keeps whatever its values.
    """
    keys = [np.concatenate([np.full(min(fewest, len(s)), inf), s[fewest:]]) for s in spectra]
    layers = np.repeat(np.arange(len(spectra)), [len(s) for s in spectra])
    order = np.argsort(-np.concatenate(keys), kind="stable")
    kept = layers[order][np.cumsum(np.asarray(costs)[layers[order]]) <= budget]
    return tuple(np.bincount(kept, minlength=len(spectra)).tolist())


HEALING = 0.05
"""Share of a trial's steps for which a cut adapter is trained on."""
FEWEST_HEALING_STEPS = 10
"""But at least so many: in one or two steps the warm-up alone would take place."""
_ADEQUATE = {Verdict.ADEQUATE: True, Verdict.INFERIOR: False, Verdict.UNDECIDED: None}
_SAME_ADAPTER = SeedNoise(variance=0.0, degrees=inf)
"""The cuts are of one trained adapter: nothing varies from seed to seed."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Candidate:
    way: Cut
    rank: int
    adapter: Adapter


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TruncationRun:
    """Measures the curve of one adapter."""

    engine: PackEngine
    context: SearchContext

    def measure(self, result: TrialResult, adapter: Adapter, *, heal: Sequence[int] = ()) -> Truncation:
        """Cut `adapter`, of the trial with that `result`, to the powers of two below its rank.

        `heal` are ranks at which the cut adapter is also trained on for 5 % of the trial's steps.
        """
        started = monotonic()
        parts = decompose(adapter)
        ranks = cut_ranks(adapter.layout.r)
        candidates = [_Candidate(way=Cut.UNIFORM, rank=k, adapter=parts.cut(parts.uniform(k))) for k in ranks]
        candidates += [
            _Candidate(way=Cut.THRESHOLD, rank=k, adapter=_under_threshold(parts, k)) for k in ranks
        ]
        healed = self._heal(result.asked, parts, [k for k in heal if k < adapter.layout.r])
        candidates += healed
        rows = self._rows(len(candidates))
        table = self.engine.validation.take(rows)
        whole = _of_rows(result, rows, table)
        points = self._points(candidates, whole, table, rows)
        tokens = 0.5 * len(candidates) * self.context.costs.evaluation_passes * int(table.lengths.sum())
        return Truncation(
            key=result.asked.key,
            r=adapter.layout.r,
            learning_rate=result.asked.hyper_parameters.learning_rate,
            nll=whole.nll,
            rows=len(rows),
            margin=self.context.wishes.margin,
            points=points,
            layers=_layers(parts),
            cost=tokens / self.context.full_run + self._healing(result.asked) * len(healed),
            seconds=monotonic() - started,
        )

    def _rows(self, models: int) -> npt.NDArray[np.int64]:
        """Of the validation table, ascending; the same for every run of a study."""
        total = len(self.engine.validation)
        count = affordable_rows(self.context, models, total)
        return np.sort(np.random.default_rng(self.context.wishes.seed).permutation(total)[:count])

    def _points(
        self,
        candidates: Sequence[_Candidate],
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
        asks_labels = self.engine.scoring.asks_labels
        found = self.engine.evaluate([each.adapter for each in candidates], table, labels=asks_labels)
        points = []
        for candidate, evaluation in zip(candidates, found, strict=True):
            own = self._as_result(whole, evaluation, table)
            comparison = compare(context, [own], [whole], _SAME_ADAPTER)
            points.append(
                CutPoint(
                    way=candidate.way,
                    rank=candidate.rank,
                    parameters=candidate.adapter.layout.size,
                    nll=own.nll,
                    loss=comparison.difference,
                    interval=comparison.interval,
                    adequate=_ADEQUATE[comparison.verdict],
                )
            )
        return tuple(points)

    def _as_result(self, whole: TrialResult, evaluation: Evaluation, table: TokenTable) -> TrialResult:
        """An evaluation in the form that results are compared in."""
        metrics, scores = self.engine.scoring.measure(evaluation, table)
        return replace(
            whole,
            nll=evaluation.nll,
            metrics=metrics,
            example_nll=evaluation.example_nll,
            example_scores=scores,
        )

    def _healing(self, asked: Trial) -> float:
        """Share of the trial's steps for which its cuts are trained on."""
        return max(HEALING, FEWEST_HEALING_STEPS / len(self.engine.batches(asked)))

    def _heal(self, asked: Trial, parts: Decomposition, ranks: Sequence[int]) -> list[_Candidate]:
        """Each cut trained on, in one pack, at its trial's learning rate.

        The law's for the lower rank is for training from scratch: on a cut to rank 1 it did harm (docs/log.md).
        """
        setting = asked.hyper_parameters
        slots = []
        for rank in ranks:
            cut = parts.cut(parts.uniform(rank))
            shorter = replace(cut.hyper_parameters, epochs=self._healing(asked) * setting.epochs)
            slot = self.engine.slot(Trial(hyper_parameters=shorter, seed=asked.seed, stage=Stage.RANK))
            slot.adapter.weights.copy_(cut.weights)
            slots.append(slot)
        if slots:
            with self.engine.attached() as step:
                while live := [slot for slot in slots if not slot.done]:
                    step(live)
        return [
            _Candidate(way=Cut.HEALED, rank=rank, adapter=slot.adapter)
            for rank, slot in zip(ranks, slots, strict=True)
        ]


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


def _under_threshold(parts: Decomposition, rank: int) -> Adapter:
    """Cut under one threshold, with at most the parameters of a uniform `rank`."""
    return parts.cut(threshold_ranks(parts.spectra, parts.costs, rank * sum(parts.costs)))


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


def _layers(parts: Decomposition) -> tuple[LayerSpectrum, ...]:
    return tuple(
        LayerSpectrum(
            module=target.name,
            stable_rank=stable_rank(spectrum),
            entropy_rank=entropy_rank(spectrum),
            energy_rank=energy_rank(spectrum),
        )
        for target, spectrum in zip(parts.adapter.layout.targets, parts.spectra, strict=True)
    )
