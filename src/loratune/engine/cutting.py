"""An adapter cut to lower ranks, all cuts evaluated together on the same rows, some trained on a little before.

Knows one engine; nothing of statistics or of what the cuts are for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from loratune.data.table import TokenTable
from loratune.engine.evaluate import Evaluation
from loratune.engine.pack import PackEngine
from loratune.lora.layout import Adapter
from loratune.lora.spectrum import Decomposition, decompose, threshold_ranks
from loratune.values import Cut, Stage, Trial


@dataclass(frozen=True, kw_only=True, slots=True)
class Cuts:
    """Which cuts of an adapter are wanted, by rank."""

    uniform: tuple[int, ...]
    """The same rank in every layer."""
    threshold: tuple[int, ...]
    """One threshold on the singular values of all layers, at the parameters of that rank at most."""
    healed: tuple[int, ...] = ()
    """Ranks of uniform cuts that are trained on afterwards."""
    healing: float = 0.0
    """Share of the trial's epochs for which cuts are trained on."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CutScore:
    """One cut."""

    way: Cut
    rank: int
    parameters: int
    evaluation: Evaluation


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CutScores:
    """All cuts of an adapter, and what they were made by."""

    scores: tuple[CutScore, ...]
    """Uniform ones, those under a threshold, healed ones."""
    spectra: tuple[tuple[str, npt.NDArray[np.float64]], ...]
    """Name and singular values, in descending order, of every layer's update in the whole adapter."""


def cut_scores(
    engine: PackEngine, adapter: Adapter, trial: Trial, cuts: Cuts, table: TokenTable, *, labels: bool = False
) -> CutScores:
    """Cut the adapter of a trial and evaluate all cuts on the rows of `table`; `labels` asks for predictions too."""
    parts = decompose(adapter)
    made = [(Cut.UNIFORM, rank, parts.cut(parts.uniform(rank))) for rank in cuts.uniform]
    made += [(Cut.THRESHOLD, rank, _under_threshold(parts, rank)) for rank in cuts.threshold]
    healed = _healed(engine, trial, [parts.cut(parts.uniform(rank)) for rank in cuts.healed], cuts.healing)
    made += [(Cut.HEALED, rank, each) for rank, each in zip(cuts.healed, healed, strict=True)]
    found = engine.evaluate([each for _, _, each in made], table, labels=labels)
    names = [target.name for target in adapter.layout.targets]
    return CutScores(
        scores=tuple(
            CutScore(way=way, rank=rank, parameters=each.layout.size, evaluation=evaluation)
            for (way, rank, each), evaluation in zip(made, found, strict=True)
        ),
        spectra=tuple(zip(names, parts.spectra, strict=True)),
    )


def _under_threshold(parts: Decomposition, rank: int) -> Adapter:
    """Cut under one threshold, with at most the parameters of a uniform `rank`."""
    return parts.cut(threshold_ranks(parts.spectra, parts.costs, rank * sum(parts.costs)))


def _healed(engine: PackEngine, trial: Trial, cut: Sequence[Adapter], share: float) -> list[Adapter]:
    """Each trained on, in one pack, at its trial's learning rate.

    The law's for the lower rank is for training from scratch: on a cut to rank 1 it did harm (docs/log.md).
    """
    slots = []
    for adapter in cut:
        epochs = share * trial.hyper_parameters.epochs
        shorter = replace(adapter.hyper_parameters, epochs=epochs)
        asked = Trial(hyper_parameters=shorter, seed=trial.seed, stage=Stage.RANK)
        slots.append(engine.slot(asked, adapter))
    if slots:
        with engine.attached() as step:
            while live := [slot for slot in slots if not slot.done]:
                step(live)
    return [slot.adapter for slot in slots]
