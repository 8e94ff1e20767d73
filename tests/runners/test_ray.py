"""A Ray cluster of local nodes: the runner's contract, a killed worker, a killed node, and what cannot be used."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import loratune
from loratune.costs import measuring
from loratune.costs.planner import Planner
from loratune.costs.step_time import StepTime
from loratune.data.sources import DataOptions
from loratune.data.stored import write_rows
from loratune.errors import InputError
from loratune.runners.largest import LargestAdapter
from loratune.runners.local import LocalRunner
from loratune.runners.options import RunnerOptions
from loratune.runners.processes import ProcessRunner
from loratune.runners.runner import AdapterFile, Evaluated, FinalJob, Runner, ScoringJob, TrialDone, TrialJob
from loratune.runners.spec import Built, EngineSpec, build
from loratune.study.record import Study
from loratune.testing.runners import RunnerContract
from loratune.values import Stage, Trial, default_recipe
from loratune.values.events import Event, Note
from tiny import animal_rows, save_tiny_model, write_jsonl

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'loratune[ray]'")

from ray.cluster_utils import Cluster  # noqa: E402

from loratune.runners.ray import RayPool, connected  # noqa: E402

OBJECTS = 80 * 2**20
"""Bytes of each node's object store, which has nothing to hold here."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without a GPU, and two nodes with one that Ray believes in, of different kinds."""
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "num_gpus": 0,
            "object_store_memory": OBJECTS,
            "include_dashboard": False,
            "_system_config": {"health_check_period_ms": 500, "health_check_failure_threshold": 3},
        },
    )
    for kind in ("A", "B"):
        cluster.add_node(num_cpus=2, num_gpus=1, object_store_memory=OBJECTS, resources={kind: 1})
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("place")
    spec = EngineSpec(
        model=str(save_tiny_model(folder / "model")),
        data=DataOptions(data=str(write_jsonl(folder / "train.jsonl", animal_rows(60)))),
        dtype="float32",
        device="cpu",
    )
    return build(spec, folder / "rows")


@pytest.fixture(scope="module")
def pool(cluster: Any, built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayPool]:
    folder = tmp_path_factory.mktemp("pool")
    rows = write_rows(built.data, folder / "rows")
    # the device is what PyTorch finds behind the GPU that Ray gives: here a processor
    sealed = replace(built.spec.sealed(built.data), rows=str(rows), device="auto")
    with connected(cluster.address), RayPool(sealed, folder) as found:
        yield found


def planner(built: Built, devices: int = 2) -> Planner:
    times = StepTime(points=((100.0, 0.01), (1000.0, 0.05)), micro_batch_tokens=1024)
    train = built.data.train
    tokens = int(train.lengths.sum())
    return Planner(limits=built.limits, times=times, rows=len(train), tokens=tokens, slots=2, devices=devices)


def trials(count: int = 3) -> list[Trial]:
    recipe = replace(default_recipe(), batch_size=8)
    return [
        Trial(hyper_parameters=replace(recipe, r=r, lora_alpha=2.0 * r, learning_rate=1e-3), seed=seed)
        for seed, r in enumerate([4, 8, 16, 4, 8, 16][:count])
    ]


class TestRay(RunnerContract):
    @pytest.fixture(autouse=True)
    def _given(self, built: Built, pool: RayPool) -> None:
        self.built, self.pool = built, pool

    def make_runner(self, folder: Path) -> Runner:
        return ProcessRunner(
            pool=self.pool,
            options=RunnerOptions(planner=planner(self.built), largest=LargestAdapter(folder, [])),
        )

    def trials(self) -> Sequence[Trial]:
        return trials()


def test_there_is_a_worker_on_each_gpu(pool: RayPool) -> None:
    assert len(pool) == pool.facts.devices == 2
    nodes = {
        ray.get(actor.__ray_call__.remote(lambda self: ray.get_runtime_context().get_node_id()))
        for actor in pool._actors
    }
    assert len(nodes) == 2


def test_a_study_on_the_cluster(
    pool: RayPool, built: Built, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker on each node, by paths that are relative to the driver's folder; decides as one process."""
    monkeypatch.setattr(measuring, "SECONDS", 0.05)
    monkeypatch.chdir(tmp_path)
    place: dict[str, Any] = {
        "model": built.spec.model, "data": built.spec.data.data, "dtype": "float32", "device": "cpu",
        "strategy": "grid", "ranks": [4, 2], "learning_rates": [1e-2], "batch_sizes": [8], "epochs": 1.0,
        "budget": "8x", "no_ledger": True,
    }  # fmt: skip
    alone = loratune.tune(out="alone", **place)
    found = loratune.tune(out="run", ray=cluster.address, **place)
    losses = [
        {each.asked.key: each.nll for each in Study.load(result.directory, storage=None).results()}
        for result in (alone, found)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert found.recommended == alone.recommended
    assert [file.name for file in (tmp_path / "run").glob(".workers-*")] == []
    with pytest.raises(
        InputError, match=r"names a Ray cluster, .*, which is only joined where you name it too; add --ray"
    ):
        loratune.resume("run")


def lost(pool: RayPool, built: Built, strike: Any, told: list[str]) -> list[TrialDone]:
    """Six trials, of which one has come when `strike` is called."""

    def tell(event: Event) -> None:
        if isinstance(event, Note):
            told.append(event.text)

    runner = ProcessRunner(pool=pool, options=RunnerOptions(planner=planner(built), tell=tell))
    found = []
    for done in runner.run([TrialJob(trial=trial) for trial in trials(6)]):
        assert isinstance(done, TrialDone)
        if not found:
            strike()
        found.append(done)
    return found


def expected(built: Built) -> dict[str, float]:
    local = LocalRunner(engine=built.engine, options=RunnerOptions(planner=planner(built, devices=1)))
    found = list(local.run([TrialJob(trial=trial) for trial in trials(6)]))
    return {done.result.asked.key: done.result.nll for done in found if isinstance(done, TrialDone)}


def test_a_killed_worker_is_replaced(pool: RayPool, built: Built) -> None:
    told: list[str] = []
    found = lost(pool, built, lambda: ray.kill(pool._actors[1]), told)
    assert {done.result.asked.key: done.result.nll for done in found} == pytest.approx(
        expected(built), rel=1e-4
    )
    assert len(found) == 6
    assert any("a worker of the ray cluster ended" in text.lower() for text in told), told


def test_a_killed_node_costs_no_result_and_the_others_take_over(
    pool: RayPool, built: Built, cluster: Any
) -> None:
    """Its GPU never comes back; the final run, too, is trained by who is left."""
    told: list[str] = []
    doomed = ray.get(
        pool._actors[1].__ray_call__.remote(lambda self: ray.get_runtime_context().get_node_id())
    )
    node = next(each for each in cluster.worker_nodes if each.node_id == doomed)
    found = lost(pool, built, lambda: cluster.remove_node(node, allow_graceful=False), told)
    assert {done.result.asked.key: done.result.nll for done in found} == pytest.approx(
        expected(built), rel=1e-4
    )
    assert len(found) == 6
    assert pool.beginning == {1}
    folder = Path(pool._settings[0].scratch).parent / "final"
    runner = ProcessRunner(pool=pool, options=RunnerOptions(folder=folder))
    jobs = [FinalJob(trial=replace(trial, stage=Stage.FINAL), patience=3) for trial in trials(2)]
    final = [each for each in runner.run(jobs) if isinstance(each, TrialDone)]
    assert {each.result.asked.key for each in final} == {job.trial.key for job in jobs}
    assert final[0].adapter is not None
    file = AdapterFile(folder=final[0].adapter, hyper_parameters=final[0].result.trial.hyper_parameters)
    (scored,) = runner.run([ScoringJob(adapters=(file,), split="validation")])
    assert isinstance(scored, Evaluated)
    assert scored.evaluations[0].nll == pytest.approx(final[0].result.nll, rel=1e-5)


def test_no_gpu_is_free(pool: RayPool, tmp_path: Path) -> None:
    """The one that is left is the pool's."""
    with pytest.raises(
        InputError, match=r"needs a cluster with a free GPU, but this one has [12] GPUs and none is free"
    ):
        RayPool(replace(pool._settings[0].spec, device="auto"), tmp_path)


@pytest.mark.parametrize("address", ["nowhere", "host:port", ":6379", "127.0.0.1:0", "127.0.0.1:99999"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(InputError, match="--ray must be auto or HOST:PORT, got"), connected(address):
        pass


def test_ray_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loratune.runners.ray.ray", None)
    with pytest.raises(InputError, match=r"pip install 'loratune\[ray\]'"), connected("auto"):
        pass


def test_nobody_is_there() -> None:
    with (
        pytest.raises(
            InputError, match=r"--ray 127.0.0.1:9 must be a Ray cluster that answers, but: .*refused"
        ),
        connected("127.0.0.1:9"),
    ):
        pass
