"""Several commands at once: one run to a directory, and no folder stranded by a run that was killed as it began."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import loratune
from loratune.costs import measuring
from loratune.errors import OutputError
from loratune.files.lock import FolderLock, is_empty
from loratune.study.record import Study
from tiny import animal_rows, save_tiny_model, write_jsonl

HOLD = """
import sys
from pathlib import Path
from loratune.files.lock import FolderLock
with FolderLock(Path(sys.argv[1])) as lock:
    lock.acquire()
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(measuring, "SECONDS", 0.05)
    return {
        "model": save_tiny_model(tmp_path / "model"), "data": write_jsonl(tmp_path / "train.jsonl", animal_rows(100)),
        "dtype": "float32", "device": "cpu", "strategy": "grid", "budget": "8x",
        "epochs": 1.0, "ranks": [2], "no_ledger": True,
        "learning_rates": [1e-3, 1e-2], "batch_sizes": [16], "validation_rows": 16, "test_rows": 16,
        "out": tmp_path / "run",
    }  # fmt: skip


def hold(folder: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_held_folder_names_its_owner_and_a_killed_owner_holds_nothing(tmp_path: Path) -> None:
    process = hold(tmp_path)
    owner = json.loads((tmp_path / ".lock.json").read_text())
    assert owner["process"] == process.pid
    with FolderLock(tmp_path) as lock, pytest.raises(OutputError) as caught:
        lock.acquire()
    assert f"process {process.pid} on {owner['host']}, since {owner['since']}" in str(caught.value)
    process.kill()
    process.wait()
    with FolderLock(tmp_path) as lock:
        lock.acquire()
    assert not (tmp_path / ".lock.json").exists()
    assert is_empty(tmp_path)


def test_an_owner_that_cannot_be_read_is_another_process(tmp_path: Path) -> None:
    process = hold(tmp_path)
    (tmp_path / ".lock.json").write_text("[")
    with FolderLock(tmp_path) as lock, pytest.raises(OutputError, match="another process"):
        lock.acquire()
    process.kill()
    process.wait()


def test_a_second_run_on_a_directory_is_refused(options: dict[str, Any]) -> None:
    """Two at once would record trials twice; whether the directory is new or resumed."""
    out = options["out"]
    process = hold(out)
    with pytest.raises(OutputError, match=f"in use by process {process.pid}"):
        loratune.tune(**options)
    assert not (out / "study.db").exists()
    (out / "study.db").touch()  # it has begun
    with pytest.raises(OutputError, match=f"in use by process {process.pid}"):
        loratune.tune(**options)
    process.kill()
    process.wait()
    (out / "study.db").unlink()
    first = loratune.tune(**options)
    (out / "result.json").unlink()
    process = hold(out)
    with pytest.raises(OutputError, match=f"in use by process {process.pid}"):
        loratune.tune(**options, resume=True)
    process.kill()
    process.wait()
    assert loratune.tune(**options, resume=True).recommended == first.recommended
    rows = [result.asked.key for result in Study.load(out).results()]
    assert len(rows) == len(set(rows))


def test_a_database_without_a_study_strands_no_folder(options: dict[str, Any]) -> None:
    """As older versions left it where they were killed in their first tenth of a second."""
    out = options["out"]
    out.mkdir()
    (out / "study.db").write_bytes(b"")
    with pytest.raises(OutputError, match="--resume"):
        loratune.tune(**options)
    loratune.tune(**options, resume=True)
    assert (out / "result.json").exists()


def test_leftovers_of_a_kill_do_not_count(options: dict[str, Any]) -> None:
    out = options["out"]
    out.mkdir()
    for name in (".lock", ".lock.json", ".study.db.x1.tmp"):
        (out / name).write_text("")
    loratune.tune(**options)
    assert (out / "result.json").exists()


def test_a_folder_made_for_nothing_goes_with_its_lock(tmp_path: Path) -> None:
    def begin(folder: Path, *names: str) -> None:
        with FolderLock(folder) as lock:
            lock.acquire()
            for name in names:
                (folder / name).touch()
            raise OutputError("no such storage")

    there = tmp_path / "there"
    there.mkdir()
    for folder, names in ((tmp_path / "new", ()), (tmp_path / "begun", ("study.db",)), (there, ())):
        with pytest.raises(OutputError, match="no such storage"):
            begin(folder, *names)
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "begun" / "study.db").exists()
    assert there.is_dir(), "the user made it"
    with FolderLock(tmp_path / "new") as lock:
        lock.acquire()
    assert (tmp_path / "new").is_dir()
