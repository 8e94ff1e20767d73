"""An engine from a pickled specification, in other processes: the runner's contract, results to the last bit."""

import os
import pickle
import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from loratune.costs.planner import Planner
from loratune.costs.step_time import StepTime
from loratune.data.sources import DataOptions
from loratune.data.stored import write_rows
from loratune.errors import DataError, InputError, ModelError, ResourceError
from loratune.runners import processes
from loratune.runners.largest import LargestAdapter
from loratune.runners.local import LocalRunner
from loratune.runners.options import RunnerOptions
from loratune.runners.processes import ProcessRunner, WorkerPool
from loratune.runners.runner import AdapterFile, Evaluated, FinalJob, Runner, ScoringJob, TrialDone, TrialJob
from loratune.runners.spec import Built, EngineSpec, build
from loratune.testing.runners import RunnerContract
from loratune.values import Stage, Trial, default_recipe
from loratune.values.events import Event, Note, Progress
from tiny import animal_rows, save_tiny_model, write_jsonl
from warm import warm_context


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


@pytest.fixture(scope="module", autouse=True)
def _warm() -> Iterator[None]:
    """Fourteen processes with the imports made once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "get_context", warm_context)
        yield


@pytest.fixture(scope="module")
def pool(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerPool]:
    """Two processes for all tests: they take seconds to start."""
    folder = tmp_path_factory.mktemp("pool")
    rows = write_rows(built.data, folder / "rows")
    sealed = replace(built.spec.sealed(built.data), rows=str(rows))
    assert pickle.loads(pickle.dumps(sealed)) == sealed
    with WorkerPool(sealed, ("cpu", "cpu"), folder, folder / "final") as found:
        yield found


def test_activations_are_computed_again_as_asked(built: Built, tmp_path: Path) -> None:
    """Of a model with two layers; where that is left to us and there is room, of none."""
    asked = [default_recipe()], 64
    assert built.engine.recompute(*asked) == 0
    assert build(replace(built.spec, recompute="all"), tmp_path).engine.recompute(*asked) == 2
    with pytest.raises(InputError, match="--recompute must be auto, none, all or 0 to 2"):
        build(replace(built.spec, recompute="3"), tmp_path)


def planner(built: Built, slots: int = 2, devices: int = 2) -> Planner:
    times = StepTime(points=((100.0, 0.01), (1000.0, 0.05)), micro_batch_tokens=1024)
    train = built.data.train
    return Planner(
        limits=built.limits,
        times=times,
        rows=len(train),
        tokens=int(train.lengths.sum()),
        slots=slots,
        devices=devices,
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
        return ProcessRunner(
            pool=self.pool, options=RunnerOptions(planner=planner(self.built), largest=largest)
        )

    def trials(self) -> Sequence[Trial]:
        return trials()


def test_one_trial_is_the_local_one_to_the_last_bit(built: Built, pool: WorkerPool, tmp_path: Path) -> None:
    """Curve, steps and rows; the adapter that came as a file is the one kept here."""
    trial = trials()[2]
    found = {}
    for name in ("here", "there"):
        largest = LargestAdapter(tmp_path / name, [])
        runner: Runner = ProcessRunner(
            pool=pool, options=RunnerOptions(planner=planner(built), largest=largest)
        )
        if name == "here":
            runner = LocalRunner(
                engine=built.engine, options=RunnerOptions(planner=planner(built, devices=1), largest=largest)
            )
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
    runner = ProcessRunner(pool=pool, options=RunnerOptions(planner=planner(built)))
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


def test_a_killed_worker_is_replaced_and_only_its_unfinished_trials_begin_anew(
    built: Built, pool: WorkerPool
) -> None:
    """kill -9 in the middle: every trial still comes to one result, that of a run without the kill."""
    notes: list[str] = []

    def tell(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event.text)
        if isinstance(event, Progress) and not notes and not killed:
            killed.append(pool._processes[0].pid)
            pool._processes[0].kill()

    killed: list[int | None] = []
    runner = ProcessRunner(pool=pool, options=RunnerOptions(planner=planner(built), tell=tell))
    asked = trials()
    results = [
        done.result
        for done in runner.run([TrialJob(trial=trial) for trial in asked])
        if isinstance(done, TrialDone)
    ]
    assert sorted(result.asked.key for result in results) == sorted(trial.key for trial in asked)
    (note,) = notes
    assert re.match(
        r"The process for cpu ended \(exit code -9\) and is replaced; its \d unfinished trials", note
    )
    assert pool._processes[0].pid not in killed
    assert pool._processes[0].is_alive()
    whole = LocalRunner(engine=built.engine, options=RunnerOptions(planner=planner(built, devices=1)))
    expected = {
        d.result.asked.key: d.result
        for d in whole.run([TrialJob(trial=t) for t in asked])
        if isinstance(d, TrialDone)
    }
    for result in results:
        assert result.nll == pytest.approx(expected[result.asked.key].nll, rel=1e-5)


def test_being_asked_to_stop_ends_what_runs_at_its_next_reading(built: Built, pool: WorkerPool) -> None:
    """No result is made up for a trial that was cut; the pool goes on afterwards."""
    stop: list[bool] = []
    long = [
        replace(trial, hyper_parameters=replace(trial.hyper_parameters, epochs=40.0)) for trial in trials()
    ]
    runner = ProcessRunner(
        pool=pool,
        options=RunnerOptions(
            planner=planner(built),
            tell=lambda event: stop.append(True) if isinstance(event, Progress) else None,
            stopped=lambda: bool(stop),
        ),
    )
    assert list(runner.run([TrialJob(trial=trial) for trial in long])) == []
    assert (
        len(
            list(
                ProcessRunner(pool=pool, options=RunnerOptions(planner=planner(built))).run(
                    [TrialJob(trial=trials()[0])]
                )
            )
        )
        == 1
    )


def test_what_kills_every_worker_is_an_error_that_says_what_is_kept(pool: WorkerPool, built: Built) -> None:
    """Not for ever one process after the other."""

    def tell(event: Event) -> None:
        if isinstance(event, Progress):
            for process in pool._processes:
                process.kill()

    asked = [
        replace(trial, hyper_parameters=replace(trial.hyper_parameters, epochs=40.0)) for trial in trials()
    ]
    runner = ProcessRunner(pool=pool, options=RunnerOptions(planner=planner(built), tell=tell))
    with pytest.raises(ResourceError, match=r"the process for cpu ended \(exit code -9\).*--resume"):
        list(runner.run([TrialJob(trial=trial) for trial in asked]))
    assert (
        len(
            list(
                ProcessRunner(pool=pool, options=RunnerOptions(planner=planner(built))).run(
                    [TrialJob(trial=trials()[0])]
                )
            )
        )
        == 1
    )


def test_a_sharded_base_trains_as_a_whole_one(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process holds half of the layers: results to the last bit; one that hangs is killed and not replaced, and
    when one has died nothing of another is believed.
    """
    rows = write_rows(built.data, tmp_path / "rows")
    sealed = replace(built.spec.sealed(built.data), rows=str(rows))
    asked = trials()
    local = LocalRunner(
        engine=built.engine, options=RunnerOptions(planner=planner(built, slots=1, devices=1))
    )
    expected = {done.result.asked.key: done.result for done in local.run([TrialJob(trial=t) for t in asked])}
    with WorkerPool(sealed, ("cpu", "cpu"), tmp_path, sharded=True) as pool:
        assert pool.facts.profile.shards == 2
        assert (
            pool.facts.limits.fullest([default_recipe()]).weights
            < built.limits.fullest([default_recipe()]).weights
        )
        runner = ProcessRunner(pool=pool, options=RunnerOptions(planner=planner(built, slots=1)))
        for done in runner.run([TrialJob(trial=t) for t in asked]):
            assert isinstance(done, TrialDone)
            one, other = done.result, expected[done.result.asked.key]
            assert one.curve == other.curve
            assert one.example_nll is not None
            assert np.array_equal(one.example_nll, other.example_nll)
        hung = pool._processes[1]
        assert hung.pid is not None
        os.kill(hung.pid, signal.SIGSTOP)
        monkeypatch.setattr("loratune.runners.pool.PATIENCE", 0.1)
        pool.abandon([1])
        hung.join(60)
        assert not pool.whole
        with pytest.raises(ResourceError, match=r"held a part of the base model .* --resume"):
            list(runner.run([TrialJob(trial=t) for t in asked]))
