"""A worker and the driver killed with -9, their study in PostgreSQL: nothing is lost, nothing is done twice."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
from sqlalchemy import create_engine, inspect, text

import loratune
from loratune.app.worker import run_worker
from loratune.costs import measuring
from loratune.errors import OutputError
from loratune.runners import lease_worker, shared
from loratune.runners.leases import LeaseFolder
from loratune.study.database import shared_folders
from loratune.study.record import Study
from loratune.study.secrets import with_driver
from loratune.values import TrialResult
from postgresql_fixture import PASSWORD, server
from tiny import animal_rows, save_tiny_model, write_jsonl


@pytest.fixture(scope="module")
def storage() -> Iterator[str]:
    with server() as url:
        yield f"{url}postgres"


def forked(work: Callable[[], Any]) -> BaseProcess:
    """A process of its own, with all that this one has imported and patched."""
    process = get_context("fork").Process(target=work)
    process.start()
    return process


def until(found: Callable[[], Any], *processes: BaseProcess) -> None:
    """While these live."""
    end = monotonic() + 300
    while not found():
        assert monotonic() < end
        assert all(process.is_alive() for process in processes)
        sleep(0.05)


def kill(process: BaseProcess) -> None:
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def kill_with_a_lease(process: BaseProcess, place: LeaseFolder, driver: BaseProcess) -> list[str]:
    """Kill a worker that holds trials; returns their keys."""
    assert process.pid is not None
    while True:
        until(place.running, process, driver)
        os.kill(process.pid, signal.SIGSTOP)  # so that it cannot hand them over meanwhile
        if held := [lease.key for lease in place.running()]:
            kill(process)
            return held
        os.kill(process.pid, signal.SIGCONT)


@pytest.mark.skipif(
    "PYTEST_XDIST_WORKER" in os.environ,
    reason="forks this process, and a child hangs where earlier tests have left threads: `make test` runs it alone",
)
def test_killed_one_after_the_other(storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "SECONDS", 0.05)
    monkeypatch.setattr(shared, "_LOOK", 0.02)
    monkeypatch.setattr(shared, "SILENCE", 3.0)
    monkeypatch.setattr(lease_worker, "BEAT", 0.2)
    monkeypatch.setattr(lease_worker, "_LOOK", 0.05)
    place: dict[str, Any] = {
        "model": save_tiny_model(tmp_path / "model"), "data": write_jsonl(tmp_path / "train.jsonl", animal_rows(60)),
        "dtype": "float32", "device": "cpu", "strategy": "grid", "ranks": [4, 2], "learning_rates": [3e-3, 1e-2],
        "batch_sizes": [8], "epochs": 1.0, "budget": "12x", "no_ledger": True, "pack_size": 2,
    }  # fmt: skip
    alone = loratune.tune(out=tmp_path / "alone", **place)
    out = tmp_path / "run"
    queue = LeaseFolder(out / "queue")

    def work() -> None:
        run_worker(None, storage=storage, device="cpu", wait="5m", tell=lambda event: None)

    def recorded() -> dict[str, TrialResult]:
        return {each.asked.key: each for each in Study.load(out, storage=storage, reading=True).results()}

    first = forked(work)  # before there is a table in the database
    driver = forked(lambda: loratune.tune(out=out, devices=["workers"], storage=storage, **place))
    lost = kill_with_a_lease(first, queue, driver)
    second = forked(work)
    until(lambda: any(key in recorded() for key in lost), driver, second)
    kill(driver)
    before = recorded()
    found = loratune.resume(out, storage=storage)
    second.join()
    assert second.exitcode == 0
    after = recorded()
    assert {key: after[key].ended for key in before} == {key: each.ended for key, each in before.items()}
    expected = {each.asked.key: each.nll for each in Study.load(alone.directory, storage=None).results()}
    assert {key: each.nll for key, each in after.items()} == pytest.approx(expected, rel=1e-5)
    assert found.recommended == alone.recommended
    told = (out / "events.jsonl").read_text()
    assert "has not been heard of for 3 s" in told
    for file in out.rglob("*"):
        if file.is_file():
            assert PASSWORD.encode() not in file.read_bytes(), file
            assert storage.partition(":")[2].partition("@")[0].encode() not in file.read_bytes(), file
    ends = [json.loads(line) for line in told.splitlines()]
    trained = [each["key"] for each in ends if each["event"] == "trial_ended"]
    assert sorted(trained) == sorted(set(trained)), "a trial ended twice"


def test_tables_that_are_just_being_made_are_left_to_whoever_makes_them(storage: str) -> None:
    with create_engine(with_driver(storage), isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text("CREATE DATABASE begun"))
    begun = storage.replace("/postgres", "/begun")
    engine = create_engine(with_driver(begun))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE studies (study_id INTEGER)"))
    assert shared_folders(begun) == []
    assert inspect(engine).get_table_names() == ["studies"]


def test_a_database_without_studies_and_a_server_that_is_not_there(storage: str) -> None:
    assert shared_folders(storage.replace("/postgres", "/template1")) == []
    absent = storage.replace("/postgres", "/nowhere")
    with pytest.raises(
        OutputError, match=r"must be in a storage that can be read and written, but: .*nowhere"
    ) as caught:
        run_worker(None, storage=absent, tell=lambda event: None)
    assert PASSWORD not in str(caught.value)
    wrong = storage.replace("ann:", "bob:")
    with pytest.raises(OutputError, match="authentication failed") as caught:
        run_worker(None, storage=wrong, tell=lambda event: None)
    assert PASSWORD not in str(caught.value)
    assert "s3cret" not in str(caught.value)
