"""The truncation curve on a real engine: a planted rank is found, rows and cost are bounded, healing heals."""

from dataclasses import replace
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch

from engine_fixture import VOCABULARY, engine, tiny_llama, trial
from loratune.analysis.truncation import FEWEST_HEALING_STEPS, TruncationRun
from loratune.costs.readings import FEWEST_ROWS, affordable_rows, cut_ranks
from loratune.data.table import TokenTable
from loratune.engine.pack import PackEngine
from loratune.lora.layout import Adapter
from loratune.lora.peft_io import save_adapter
from loratune.lora.spectrum import decompose
from loratune.model.base import BaseModel
from loratune.runners.largest import LargestAdapter
from loratune.runners.local import LocalRunner, read_adapter
from loratune.runners.runner import AdapterFile
from loratune.study.record import Study
from loratune.values import (
    Cut,
    DataFacts,
    SearchContext,
    Stage,
    Trial,
    TrialResult,
    TrialState,
    Truncation,
    Wishes,
)
from subjects import subject_of

PLANTED = 4
SUBJECT = trial(r=16, lora_alpha=32)


def planted_adapter(packs: PackEngine) -> Adapter:
    """Of rank 16 by its shapes, of rank 4 by its numbers; its update changes most answers."""
    adapter = packs.initial(SUBJECT)
    generator = torch.Generator().manual_seed(0)
    for _, b in adapter.views().values():
        b[:, :PLANTED] = 0.5 * torch.randn(b[:, :PLANTED].shape, dtype=b.dtype, generator=generator)
    return adapter


def answers_of(base: BaseModel, packs: PackEngine, adapter: Adapter, rows: int = 120) -> TokenTable:
    """Random prompts, each with the token that the adapted model gives next."""
    random = np.random.default_rng(0)
    prompts = [random.integers(0, VOCABULARY, random.integers(3, 9)).tolist() for _ in range(rows)]
    nll = np.array(
        [packs.evaluate([adapter], _table(prompts, token))[0].example_nll for token in range(VOCABULARY)]
    )
    return _table(prompts, nll.argmin(0).tolist())


def _table(prompts: list[list[int]], answers: int | list[int]) -> TokenTable:
    chosen = [answers] * len(prompts) if isinstance(answers, int) else answers
    return TokenTable.from_rows(
        [([*p, a], [False] * len(p) + [True]) for p, a in zip(prompts, chosen, strict=True)]
    )


@pytest.fixture(scope="module")
def taught() -> tuple[PackEngine, Adapter, TrialResult, SearchContext]:
    base = tiny_llama(torch.float32)
    first = engine(base, _table([[1, 2]], 3), max_tokens_per_micro_batch=2048)
    adapter = planted_adapter(first)
    table = answers_of(base, first, adapter)
    packs = replace(first, train=table, validation=table)
    (found,) = packs.evaluate([adapter], table)
    result = TrialResult(
        asked=SUBJECT,
        trial=SUBJECT,
        nll=found.nll,
        metrics={"nll": found.nll},
        example_nll=found.example_nll,
        example_scores={"exact_match": found.exact_match.astype(np.float64)},
    )
    tokens = int(table.lengths.sum())
    context = SearchContext(
        data=DataFacts(
            rows=len(table),
            tokens=tokens,
            supervised_tokens=len(table),
            validation_tokens=tokens,
            validation_weights=table.supervised_counts.astype(np.float64),
        ),
        wishes=Wishes(margin=0.01, budget=1000.0),
    )
    return packs, adapter, result, context


def measured(
    packs: PackEngine,
    context: SearchContext,
    result: TrialResult,
    adapter: Adapter,
    heal: tuple[int, ...] = (),
) -> Truncation:
    """Through this process's runner, of the adapter in a file."""
    with TemporaryDirectory() as folder:
        save_adapter(adapter, Path(folder) / "whole", packs.base.model)
        file = AdapterFile(folder=Path(folder) / "whole", hyper_parameters=adapter.hyper_parameters)
        runner = LocalRunner(engine=packs)
        run = TruncationRun(runner=runner, subject=subject_of(packs), context=context)
        return run.measure(result, file, heal=heal)


def test_the_planted_rank_is_found(
    taught: tuple[PackEngine, Adapter, TrialResult, SearchContext],
) -> None:
    packs, adapter, result, context = taught
    found = measured(packs, context, result, adapter)
    assert (found.r, found.rows, found.nll) == (16, 120, pytest.approx(result.nll))
    uniform = found.curve(Cut.UNIFORM)
    assert [point.rank for point in uniform] == [1, 2, 4, 8]
    assert [point.adequate for point in uniform] == [False, False, True, True]
    assert found.deployable == PLANTED
    assert uniform[0].loss > uniform[1].loss > 0.1
    assert uniform[2].loss == pytest.approx(0, abs=1e-4)
    assert all(layer.energy_rank <= PLANTED and layer.stable_rank < PLANTED for layer in found.layers)
    for point, other in zip(uniform, found.curve(Cut.THRESHOLD), strict=True):
        assert other.parameters <= point.parameters
    parts = decompose(adapter)
    (alone,) = packs.evaluate([parts.cut(parts.uniform(2))], packs.validation)
    assert uniform[1].nll == pytest.approx(alone.nll, rel=1e-5)
    assert uniform[1].loss == pytest.approx(alone.nll - result.nll, rel=1e-4)


def test_in_points_of_the_metric(taught: tuple[PackEngine, Adapter, TrialResult, SearchContext]) -> None:
    packs, adapter, result, context = taught
    points = context.changed(metric="exact_match", margin=1.0)
    found = measured(packs, points, result, adapter)
    uniform = found.curve(Cut.UNIFORM)
    assert uniform[0].loss > 10
    assert uniform[2].loss == 0
    assert found.deployable == PLANTED


def test_the_budget_bounds_the_rows(taught: tuple[PackEngine, Adapter, TrialResult, SearchContext]) -> None:
    packs, adapter, result, context = taught
    small = context.changed(budget=1.0)
    found = measured(packs, small, result, adapter)
    assert found.rows == FEWEST_ROWS == affordable_rows(small, 8, 120)
    assert found.cost == pytest.approx(0.5 * 8 * FEWEST_ROWS / 120 / 1.5, rel=0.1)
    again = measured(packs, small, result, adapter)
    assert again.points == found.points
    assert affordable_rows(context, 8, 120) == 120


def test_training_on_wins_back_what_the_cut_lost(
    taught: tuple[PackEngine, Adapter, TrialResult, SearchContext],
) -> None:
    packs, adapter, result, context = taught
    long = replace(
        result, asked=replace(SUBJECT, hyper_parameters=replace(SUBJECT.hyper_parameters, epochs=60))
    )
    found = measured(packs, context, long, adapter, heal=(1, 2, 16))
    healed, cut = found.curve(Cut.HEALED), found.curve(Cut.UNIFORM)
    assert [point.rank for point in healed] == [1, 2]
    assert all(after.nll < before.nll - 0.05 for after, before in zip(healed, cut, strict=False))
    assert healed[0].parameters == cut[0].parameters


def test_a_short_trial_is_trained_on_for_ten_steps(
    taught: tuple[PackEngine, Adapter, TrialResult, SearchContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    packs, adapter, result, context = taught
    assert len(packs.batches(result.asked)) == 30
    steps: list[int] = []
    slot = PackEngine.slot
    monkeypatch.setattr(
        PackEngine,
        "slot",
        lambda self, asked, initial: steps.append(len(self.batches(asked))) or slot(self, asked, initial),
    )
    found = measured(packs, context, result, adapter, heal=(2,))
    assert steps == [FEWEST_HEALING_STEPS]
    assert found.curve(Cut.HEALED)[0].nll < found.curve(Cut.UNIFORM)[1].nll


def test_ranks_of_the_curve() -> None:
    assert cut_ranks(1) == ()
    assert cut_ranks(8) == (1, 2, 4)
    assert cut_ranks(12) == (1, 2, 4, 8)


def test_the_best_adapter_of_the_largest_rank_is_kept(tmp_path: Path) -> None:
    base = tiny_llama(torch.float32)
    packs = engine(base, _table([[1, 2]], 3))
    study = Study.open(tmp_path, fingerprint={})

    def offer(
        largest: LargestAdapter,
        r: int,
        seed: int,
        nll: float,
        fraction: float = 1.0,
        stage: Stage = Stage.RANK,
    ) -> Trial:
        asked = replace(trial(seed=seed, fraction=fraction, r=r), stage=stage)
        state = TrialState.DIVERGED if nll == inf else TrialState.COMPLETE
        result = TrialResult(asked=asked, trial=asked, state=state, nll=nll, metrics={"nll": nll})
        largest.offer(result, packs.initial(asked), base.model)
        study.record(result)
        return asked

    largest = LargestAdapter(study.directory, study.results())
    assert largest.file() is None
    offer(largest, 8, 0, 0.5, fraction=0.25)
    offer(largest, 8, 1, inf)
    offer(largest, 8, 2, 0.5, stage=Stage.ALPHA)
    assert largest.file() is None
    offer(largest, 4, 0, 0.1)
    offer(largest, 8, 3, 0.6)
    best = offer(largest, 8, 4, 0.5)
    offer(largest, 8, 5, 0.55)
    offer(largest, 4, 1, 0.05)
    for kept in (largest, LargestAdapter(study.directory, study.results())):
        found = kept.file()
        assert found is not None
        assert found[0].asked == best
        assert torch.equal(read_adapter(found[1], base.profile).weights, packs.initial(best).weights)
    assert [path.name for path in (tmp_path / "largest").iterdir()] == [best.key]
    (tmp_path / "largest" / "unrecorded").mkdir()
    assert offer(LargestAdapter(study.directory, study.results()), 16, 0, 0.9).hyper_parameters.r == 16
    assert len(list((tmp_path / "largest").iterdir())) == 1
