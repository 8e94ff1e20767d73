"""This process, a table, and a clock keep one contract."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from engine_fixture import VOCABULARY, engine, tiny_llama
from instant import InstantRunner
from loratune.costs.execution import ON_CPU
from loratune.costs.limits import Limits
from loratune.costs.planner import Planner
from loratune.costs.step_time import StepTime
from loratune.engine.pack import PackEngine
from loratune.engine.selfcheck import random_table
from loratune.runners.clocked import ClockedRunner
from loratune.runners.largest import LargestAdapter
from loratune.runners.local import LocalRunner
from loratune.runners.options import RunnerOptions
from loratune.runners.runner import (
    AdapterFile,
    CalibrationJob,
    Evaluated,
    FinalJob,
    Runner,
    ScoringJob,
    TrialDone,
    only,
)
from loratune.search.expected import expected
from loratune.testing.runners import RunnerContract
from loratune.values import (
    DataFacts,
    SearchContext,
    Stage,
    Trial,
    TrialResult,
    default_recipe,
)
from planted import Planted
from simulated import TableRunner


def trials() -> list[Trial]:
    recipe = replace(default_recipe(), batch_size=8)
    return [
        Trial(hyper_parameters=replace(recipe, r=r, lora_alpha=2.0 * r, learning_rate=1e-3), seed=seed)
        for r, seed in ((4, 0), (8, 1), (16, 2))
    ]


@cache
def subject() -> PackEngine:
    tables = [random_table(VOCABULARY, rows=rows, longest=16, seed=seed) for rows, seed in ((40, 1), (16, 2))]
    return engine(tiny_llama(torch.float32), tables[0], tables[1], max_tokens_per_micro_batch=1024)


@cache
def planner() -> Planner:
    limits = Limits(
        model=subject().base.profile,
        max_length=16,
        micro_batch_tokens=1024,
        device_bytes=2**34,
        execution=ON_CPU,
    )
    times = StepTime(points=((100.0, 0.01), (1000.0, 0.05)), micro_batch_tokens=1024)
    return Planner(limits=limits, times=times, rows=40, tokens=480, slots=2)


class TestLocal(RunnerContract):
    def make_runner(self, folder: Path) -> Runner:
        return LocalRunner(
            engine=subject(), options=RunnerOptions(planner=planner(), largest=LargestAdapter(folder, []))
        )

    def trials(self) -> Sequence[Trial]:
        return trials()


@cache
def table() -> TableRunner:
    with TemporaryDirectory() as folder:
        return TableRunner.open(Planted().write(Path(folder) / "planted.csv"), "planted")


class TestTable(RunnerContract):
    def make_runner(self, folder: Path) -> Runner:
        return table().on(table().context())

    def trials(self) -> Sequence[Trial]:
        return trials()


class TestClock(RunnerContract):
    def make_runner(self, folder: Path) -> Runner:
        context = SearchContext(data=DataFacts(rows=40, tokens=480, supervised_tokens=40))
        return ClockedRunner(measure=partial(_measured, context=context), planner=planner())

    def trials(self) -> Sequence[Trial]:
        return trials()


def _measured(trial: Trial, context: SearchContext) -> TrialResult:
    found = expected(trial, context)
    return replace(found, metrics={"nll": found.nll})


def test_final_jobs_train_with_early_stopping_and_score_from_their_files(tmp_path: Path) -> None:
    tested = random_table(VOCABULARY, rows=8, longest=16, seed=3)
    runner = LocalRunner(engine=subject(), test=tested, options=RunnerOptions(folder=tmp_path / "final"))
    jobs = [FinalJob(trial=replace(trial, stage=Stage.FINAL), patience=3) for trial in trials()[:2]]
    done = list(runner.run(jobs))
    files = []
    for each in done:
        assert isinstance(each, TrialDone)
        assert each.adapter == tmp_path / "final" / each.result.asked.key
        files.append(AdapterFile(folder=each.adapter, hyper_parameters=each.result.trial.hyper_parameters))
    scored = only(runner.run([ScoringJob(adapters=(files[0], None), split="validation")]))
    assert isinstance(scored, Evaluated)
    ours, base = scored.evaluations
    assert isinstance(done[0], TrialDone)
    assert ours.nll == pytest.approx(done[0].result.nll, rel=1e-5)
    assert abs(base.nll - ours.nll) > 1e-4
    on_test = only(runner.run([ScoringJob(adapters=(None,), split="test")]))
    assert isinstance(on_test, Evaluated)
    assert len(on_test.evaluations[0].example_nll) == 8


def test_a_table_has_no_model_to_calibrate() -> None:
    runner = InstantRunner(measure=lambda asked: [_measured(t, table().context()) for t in asked])
    with pytest.raises(TypeError, match="CalibrationJob"):
        list(runner.run([CalibrationJob(recipe=default_recipe())]))
