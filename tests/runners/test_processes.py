"""An engine from a pickled specification, in other processes: the runner's contract, results to the last bit."""

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from loratune.costs.planner import Planner
from loratune.costs.step_time import StepTime
from loratune.data.sources import DataOptions
from loratune.errors import DataError, ModelError, ResourceError
from loratune.runners.local import LargestAdapter, LocalRunner
from loratune.runners.processes import ProcessRunner, WorkerPool
from loratune.runners.runner import AdapterFile, Evaluated, FinalJob, Runner, ScoringJob, TrialDone, TrialJob
from loratune.runners.spec import Built, EngineSpec, build
from loratune.testing.runners import RunnerContract
from loratune.values import Stage, Trial, default_recipe
from tiny import animal_rows, save_tiny_model, write_jsonl


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    folder = tmp_path_factory.mktemp("place")
    spec = EngineSpec(
        model=str(save_tiny_model(folder / "model")),
        data=DataOptions(data=str(write_jsonl(folder / "train.jsonl", animal_rows(60)))),
        dtype="float32",
        device="cpu",
    )
    with TemporaryDirectory() as rows:
        yield build(spec, Path(rows))


@pytest.fixture(scope="module")
def pool(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerPool]:
    """Two processes for all tests: they take seconds to start."""
    folder = tmp_path_factory.mktemp("pool")
    sealed = built.spec.sealed(built.data)
    assert pickle.loads(pickle.dumps(sealed)) == sealed
    with WorkerPool(sealed, ("cpu", "cpu"), folder, folder / "final") as found:
        yield found


def planner(built: Built, slots: int = 2) -> Planner:
    times = StepTime(points=((100.0, 0.01), (1000.0, 0.05)), micro_batch_tokens=1024)
    train = built.data.train
    return Planner(
        limits=built.limits, times=times, rows=len(train), tokens=int(train.lengths.sum()), slots=slots
    )


def trials() -> list[Trial]:
    recipe = replace(default_recipe(), batch_size=8)
    return [
        Trial(hyper_parameters=replace(recipe, r=r, lora_alpha=2.0 * r, learning_rate=1e-3), seed=seed)
        for r, seed in ((4, 0), (8, 1), (16, 2))
    ]


class TestProcesses(RunnerContract):
    @pytest.fixture(autouse=True)
    def _given(self, built: Built, pool: WorkerPool) -> None:
        self.built, self.pool = built, pool

    def make_runner(self, folder: Path) -> Runner:
        largest = LargestAdapter(folder, [])
        return ProcessRunner(pool=self.pool, planner=planner(self.built), largest=largest)

    def trials(self) -> Sequence[Trial]:
        return trials()


def test_one_trial_is_the_local_one_to_the_last_bit(built: Built, pool: WorkerPool, tmp_path: Path) -> None:
    """Curve, steps and rows; the adapter that came as a file is the one kept here."""
    trial = trials()[2]
    found = {}
    for name in ("here", "there"):
        largest = LargestAdapter(tmp_path / name, [])
        runner: Runner = ProcessRunner(pool=pool, planner=planner(built), largest=largest)
        if name == "here":
            runner = LocalRunner(engine=built.engine, planner=planner(built), largest=largest)
        (done,) = runner.run([TrialJob(trial=trial)])
        assert isinstance(done, TrialDone)
        assert done.adapter == tmp_path / name / "largest" / trial.key
        found[name] = done
    here, there = found["here"].result, found["there"].result
    assert there.curve == here.curve
    assert there.nll == here.nll
    for one, other in (
        (here.step_nll, there.step_nll),
        (here.gradient_norms, there.gradient_norms),
        (here.example_nll, there.example_nll),
    ):
        assert one is not None
        assert other is not None
        assert np.array_equal(one, other)
    files = [(each.adapter or tmp_path) / "adapter_model.safetensors" for each in found.values()]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_final_jobs_are_shared_out_and_scored_from_their_files(built: Built, pool: WorkerPool) -> None:
    runner = ProcessRunner(pool=pool)
    jobs = [FinalJob(trial=replace(trial, stage=Stage.FINAL), patience=3) for trial in trials()[:2]]
    done = {each.result.asked.key: each for each in runner.run(jobs) if isinstance(each, TrialDone)}
    assert set(done) == {job.trial.key for job in jobs}
    first = done[jobs[0].trial.key]
    assert first.adapter is not None
    file = AdapterFile(folder=first.adapter, hyper_parameters=first.result.trial.hyper_parameters)
    (scored,) = runner.run([ScoringJob(adapters=(file, None), split="test")])
    assert isinstance(scored, Evaluated)
    local = LocalRunner(engine=built.engine, test=built.data.test)
    (expected,) = local.run([ScoringJob(adapters=(file, None), split="test")])
    assert isinstance(expected, Evaluated)
    for one, other in zip(scored.evaluations, expected.evaluations, strict=True):
        assert np.array_equal(one.example_nll, other.example_nll)


def test_an_error_in_a_worker_is_raised_here_and_the_pool_goes_on(pool: WorkerPool, built: Built) -> None:
    runner = ProcessRunner(pool=pool, planner=planner(built))
    missing = AdapterFile(folder=Path("nowhere"), hyper_parameters=default_recipe())
    with pytest.raises(ModelError, match=r"must hold a readable adapter_model\.safetensors"):
        list(runner.run([ScoringJob(adapters=(missing,), split="validation")]))
    (done,) = runner.run([TrialJob(trial=trials()[0])])
    assert isinstance(done, TrialDone)


def test_other_rows_or_weights_than_were_meant_are_refused(built: Built, tmp_path: Path) -> None:
    sealed = built.spec.sealed(built.data)
    with pytest.raises(DataError, match="must be those that the study began with"):
        build(replace(sealed, data=replace(sealed.data, seed=1)), tmp_path)
    with pytest.raises(ModelError, match=r"weights of .* must be those that the study began with"):
        build(replace(sealed, weights_digest="0" * 16), tmp_path)


def test_a_worker_that_dies_is_an_error_that_says_what_is_kept(pool: WorkerPool, built: Built) -> None:
    """Last: the pool is of no use afterwards."""
    runner = ProcessRunner(pool=pool, planner=planner(built))
    results = runner.run([TrialJob(trial=trial) for trial in trials()])
    next(results)
    for process in pool._processes:
        process.kill()
    with pytest.raises(ResourceError, match=r"the process for cpu ended \(exit code -9\).*--resume"):
        list(results)
