"""A folder of leases: each trial to one worker alone, silent workers' trials to others, late results to nobody."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from loratune.costs.planner import Planner
from loratune.costs.step_time import StepTime
from loratune.data.sources import DataOptions
from loratune.runners import leases as leases_module
from loratune.runners import shared
from loratune.runners.largest import LargestAdapter
from loratune.runners.leases import LeaseFolder, Leases, Offer, Watch
from loratune.runners.local import LocalRunner
from loratune.runners.options import RunnerOptions
from loratune.runners.runner import Runner, TrialDone, TrialJob
from loratune.runners.shared import SharedRunner
from loratune.runners.spec import Built, EngineSpec, build
from loratune.testing.runners import RunnerContract
from loratune.values import Trial, TrialResult, TrialState, default_recipe
from loratune.values.events import Event, Note
from tiny import animal_rows, save_tiny_model, write_jsonl


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


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "_LOOK", 0.01)


def planner(built: Built, slots: int = 2) -> Planner:
    times = StepTime(points=((100.0, 0.01), (1000.0, 0.05)), micro_batch_tokens=1024)
    train = built.data.train
    return Planner(
        limits=built.limits, times=times, rows=len(train), tokens=int(train.lengths.sum()), slots=slots
    )


def trials(count: int = 3) -> list[Trial]:
    recipe = replace(default_recipe(), batch_size=8)
    return [
        Trial(hyper_parameters=replace(recipe, r=r, lora_alpha=2.0 * r, learning_rate=1e-3), seed=seed)
        for seed, r in enumerate([4, 8, 16, 4, 8, 16][:count])
    ]


def result(trial: Trial, nll: float = 1.5) -> TrialResult:
    return TrialResult(
        asked=trial,
        trial=trial,
        nll=nll,
        metrics={"nll": nll},
        example_nll=np.array([nll, 2 * nll]),
        cost=1.0,
    )


def offered(folder: Path, asked: Sequence[Trial], *, slots: int = 8) -> LeaseFolder:
    place = LeaseFolder(folder)
    place.begin({"model": "m"})
    for number, trial in enumerate(asked):
        place.offer(number, Offer(trial=trial, memory=1.0, room=100.0, slots=slots))
    return place


def test_a_trial_is_one_workers_however_many_reach_for_it(tmp_path: Path) -> None:
    asked = [replace(trials(1)[0], seed=seed) for seed in range(40)]
    place = offered(tmp_path / "queue", asked, slots=100)
    taken: list[list[str]] = [[] for _ in range(8)]
    start = threading.Barrier(8)

    def reach(number: int) -> None:
        start.wait()
        for name in place.waiting():
            if place.take(name, f"worker-{number}") is not None:
                taken[number].append(name)

    hands = [threading.Thread(target=reach, args=(number,)) for number in range(8)]
    for hand in hands:
        hand.start()
    for hand in hands:
        hand.join()
    assert sorted(name for names in taken for name in names) == sorted({n for names in taken for n in names})
    assert sum(map(len, taken)) == 40
    assert place.waiting() == []


def test_a_worker_takes_its_share_and_no_more_than_fits(tmp_path: Path) -> None:
    place = offered(tmp_path / "queue", trials(6))
    for worker in ("one", "two"):
        place.beat_worker(worker)
    one, two = Leases(place, "one"), Leases(place, "two")
    assert [one.next() is not None for _ in range(4)] == [True, True, True, False]
    assert [two.next() is not None for _ in range(4)] == [True, True, True, False]
    place = offered(tmp_path / "narrow", trials(4), slots=2)
    place.beat_worker("one")
    narrow = Leases(place, "one")
    assert narrow.slots == 2
    assert [narrow.next() is not None for _ in range(3)] == [True, True, False]


def test_what_is_let_go_of_waits_again(tmp_path: Path) -> None:
    asked = trials(2)
    place = offered(tmp_path / "queue", asked)
    place.beat_worker("one")
    one = Leases(place, "one")
    first = one.next()
    assert first == asked[0]
    one.ended(first, None)
    assert len(place.waiting()) == 2
    one.next()
    place.leave("one")
    assert len(place.waiting()) == 2
    assert place.running() == []
    assert place.workers() == []


def test_what_a_worker_holds_it_does_not_take_again(tmp_path: Path) -> None:
    """A driver that begins again offers it once more while it is at work; its first result is the trial's."""
    (asked,) = trials(1)
    place = offered(tmp_path / "queue", [asked])
    place.beat_worker("one")
    worker = Leases(place, "one")
    assert worker.next() == asked
    place.offer(7, Offer(trial=asked, memory=1.0, room=100.0, slots=8))
    assert worker.next() is None
    worker.ended(asked, result(asked))
    worker.finish(result(asked), None)
    assert place.done() == [(asked.key, "one")]


def test_a_result_travels_whole(tmp_path: Path) -> None:
    (trial,) = trials(1)
    place = offered(tmp_path / "queue", [trial])
    place.beat_worker("one")
    one = Leases(place, "one")
    one.next()
    sent = replace(result(trial), state=TrialState.DIVERGED, nll=float("inf"), message="guard", steps=7)
    one.finish(sent, adapter=None)
    assert place.running() == []
    assert place.done() == [(trial.key, "one")]
    found, adapter = place.result(trial.key, "one")
    assert adapter is None
    assert found.asked == trial
    assert (found.state, found.nll, found.message, found.steps) == (sent.state, sent.nll, "guard", 7)
    assert np.array_equal(cast(Any, found.example_nll), cast(Any, sent.example_nll))
    (tmp_path / "queue" / "done" / f"{trial.key}@one.json").write_text('{"result": {}}')
    with pytest.raises(ValueError, match="KeyError"):
        place.result(trial.key, "one")


def test_silence_is_told_by_ones_own_clock(tmp_path: Path) -> None:
    """Whatever the time stamps say: hosts' clocks differ, and jump."""
    now = [100.0]
    watch = Watch(lambda: now[0])
    assert watch.silent("one", 5) == 0
    now[0] = 170.0
    assert watch.silent("one", 5) == 70.0
    assert watch.silent("one", 4) == 0, "another stamp, an earlier one even, is a sign of life"
    now[0] = 180.0
    assert watch.silent("one", 4) == 10.0


class Worker:
    """One in a thread, on the engine of the test, that does as `loratune worker` does."""

    def __init__(self, built: Built, place: LeaseFolder, name: str) -> None:
        self.leases, self.place, self.name = Leases(place, name), place, name
        place.beat_worker(name)
        self.runner = LocalRunner(
            engine=built.engine,
            options=RunnerOptions(
                largest=LargestAdapter(place.adapter_folder(name), (), alone=False),
                stopped=lambda: place.halted,
            ),
        )

    def work(self, most: int = 1000) -> None:
        """Until so many results are there or nothing waits."""
        with closing(self.runner.search(self.leases)) as results:
            for done in results:
                self.leases.finish(done.result, done.adapter)
                most -= 1
                if most == 0:
                    return


class TestShared(RunnerContract):
    @pytest.fixture(autouse=True)
    def _given(self, built: Built) -> Iterator[None]:
        self.built, self.over = built, threading.Event()
        self.hands: list[threading.Thread] = []
        yield
        self.over.set()
        for hand in self.hands:
            hand.join()

    def make_runner(self, folder: Path) -> Runner:
        place = LeaseFolder(folder / "queue")
        place.begin({})
        worker = Worker(self.built, place, "one")

        def work() -> None:
            while not self.over.wait(0.01):
                if place.waiting():
                    worker.work()

        for hand in self.hands:  # one engine serves one at a time
            self.over.set()
            hand.join()
        self.over.clear()
        self.hands = [threading.Thread(target=work)]
        self.hands[0].start()
        largest = LargestAdapter(folder, [])
        here = LocalRunner(engine=self.built.engine)
        return SharedRunner(
            place=place, here=here, options=RunnerOptions(planner=planner(self.built), largest=largest)
        )

    def trials(self) -> Sequence[Trial]:
        return trials()


def shared_runner(built: Built, folder: Path, told: list[str] | None = None, **settings: Any) -> SharedRunner:
    def tell(event: Event) -> None:
        if told is not None and isinstance(event, Note):
            told.append(event.text)

    return SharedRunner(
        place=LeaseFolder(folder / "queue"),
        here=LocalRunner(engine=built.engine),
        **settings,
        options=RunnerOptions(planner=planner(built), tell=tell),
    )


def test_a_silent_worker_loses_its_trials_to_another_and_its_late_result_is_forgotten(
    built: Built, tmp_path: Path
) -> None:
    asked, told = trials(3), list[str]()
    runner = shared_runner(built, tmp_path, told, silence=0.2)
    place = runner.place
    place.begin({})
    results = runner.run([TrialJob(trial=trial) for trial in asked])
    found: list[TrialDone] = []
    drive = threading.Thread(target=lambda: found.extend(cast(Any, results)))
    drive.start()
    dead = Leases(place, "dead")
    place.beat_worker("dead")
    while (late := dead.next()) is None:
        pass
    while place.running():  # nobody beats for it
        pass
    assert len(place.waiting()) == 3
    alive = Worker(built, place, "alive")
    beating = threading.Event()

    def beat() -> None:
        while not beating.wait(0.02):
            place.beat_worker("alive")

    pulse = threading.Thread(target=beat)
    pulse.start()
    alive.work()
    drive.join()
    beating.set()
    pulse.join()
    assert sorted(done.result.asked.key for done in found) == sorted(trial.key for trial in asked)
    assert told == [
        "The worker dead has not been heard of for 0 s; its 1 unfinished trials start again elsewhere."
    ]
    dead.finish(result(late, nll=99.0), adapter=None)
    assert place.done() == [(late.key, "dead")]
    assert list(runner._found({late.key})) == []
    assert place.done() == []
    by_key = {done.result.asked.key: done.result.nll for done in found}
    local = LocalRunner(engine=built.engine, options=RunnerOptions(planner=planner(built)))
    for done in local.run([TrialJob(trial=trial) for trial in asked]):
        assert isinstance(done, TrialDone)
        assert by_key[done.result.asked.key] == pytest.approx(done.result.nll, rel=1e-5)


def test_a_driver_that_was_killed_finds_what_came_meanwhile(built: Built, tmp_path: Path) -> None:
    """One trial done without a driver, one running, one waiting: the next driver trains none of them twice."""
    asked = trials(3)
    before = shared_runner(built, tmp_path)
    before.place.begin({})
    before._offer(asked, asked)  # and dies
    worker = Worker(built, before.place, "one")
    worker.work(most=1)
    assert len(before.place.done()) == 1
    assert len(before.place.running()) == 1, "the second was begun beside the first"
    after = shared_runner(built, tmp_path)
    after.place.begin({})
    assert after.place.waiting() == []
    found: list[TrialDone] = []
    drive = threading.Thread(
        target=lambda: found.extend(cast(Any, after.run([TrialJob(trial=trial) for trial in asked])))
    )
    drive.start()
    while not after.place.waiting():
        pass
    assert len(after.place.waiting()) == 1
    held = next(iter(worker.leases.held.values()))[1].trial
    worker.leases.finish(result(held), adapter=None)
    Worker(built, after.place, "two").work()
    drive.join()
    assert sorted(done.result.asked.key for done in found) == sorted(trial.key for trial in asked)


def test_a_trial_whose_result_is_there_runs_no_more_though_its_lease_stands(
    built: Built, tmp_path: Path
) -> None:
    """A worker writes the result, then takes back the lease; a driver that looks in between asks for no more."""
    (trial,) = trials(1)
    runner = shared_runner(built, tmp_path)
    place = runner.place
    place.begin({})
    runner._offer([trial], [trial])
    place.beat_worker("one")
    one = Leases(place, "one")
    one.next()
    lease, _ = one.held[trial.key]
    one.finish(result(trial), adapter=None)
    (place.folder / "running" / f"{lease.name}@{lease.worker}").touch()

    def more(done: Sequence[TrialResult], running: Sequence[Trial]) -> Sequence[Trial]:
        raise AssertionError("nothing runs: it is the driver's turn")

    (done,) = runner.run([TrialJob(trial=trial)], more)
    assert isinstance(done, TrialDone)
    assert done.result.asked == trial


def test_a_damaged_result_begins_anew(built: Built, tmp_path: Path) -> None:
    (trial,), told = trials(1), list[str]()
    runner = shared_runner(built, tmp_path, told)
    runner.place.begin({})
    runner._offer([trial], [trial])
    place = runner.place
    place.beat_worker("one")
    one = Leases(place, "one")
    one.next()
    one.finish(result(trial), adapter=None)
    (tmp_path / "queue" / "done" / f"{trial.key}@one.npz").write_bytes(b"PK")
    assert list(runner._found({trial.key})) == []
    assert len(place.waiting()) == 1
    assert "is damaged" in told[0]


def test_names_that_are_no_names_are_left_alone(tmp_path: Path) -> None:
    place = offered(tmp_path / "queue", [])
    for part, name in (("waiting", "../x"), ("running", "000001-0123456789abcdef@a b"), ("done", "k@é.json")):
        (tmp_path / "queue" / part / name.replace("../", "..")).write_text("{}")
    assert (place.waiting(), place.running(), place.done()) == ([], [], [])


def test_a_queue_of_another_format_is_refused(tmp_path: Path) -> None:
    place = offered(tmp_path / "queue", [])
    assert place.engine() == {"model": "m"}
    (tmp_path / "queue" / "engine.json").write_text(json.dumps({"format": 2, "engine": {}}))
    with pytest.raises(ValueError, match="must be of format 1"):
        place.engine()
    assert leases_module.FORMAT == 1
