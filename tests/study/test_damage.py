"""Damaged studies: a trial that cannot be read is left out, a study one sentence; readers write nothing."""

import json
import os
import sqlite3
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loratune.errors import OutputError
from loratune.study.record import FORMAT, Study
from loratune.study.rows import arrays_of, read_arrays, write_arrays
from study_fixture import make_result


def study_attribute(directory: Path, name: str, value: str) -> None:
    """Put other JSON in the place of what the study keeps of itself under a name."""
    with closing(sqlite3.connect(directory / "study.db")) as database, database:
        database.execute("UPDATE study_user_attributes SET value_json = ? WHERE key = ?", (value, name))


def attribute(directory: Path, name: str, value: str) -> None:
    """Put other JSON in the place of what the study keeps of a trial under a name."""
    with closing(sqlite3.connect(directory / "study.db")) as database, database:
        table = "trial_user_attributes"
        database.execute(f"UPDATE {table} SET value_json = ? WHERE key = ?", (value, name))
        (ours,) = database.execute(f"SELECT value_json FROM {table} WHERE key = 'loratune'").fetchone()
        if name in json.loads(ours):
            ours = json.dumps(json.loads(ours) | {name: json.loads(value)})
            database.execute(f"UPDATE {table} SET value_json = ? WHERE key = 'loratune'", (ours,))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    study = Study.open(tmp_path / "run", fingerprint={"seed": 0})
    study.record(make_result(4))
    study.put_fact("calibration", {"pack": 1.0})
    study.close()
    return tmp_path / "run"


WRONG_ARRAYS = {
    "empty": b"",
    "torn": b"PK\x03\x04 torn",
    "no archive": b"x" * 5000,
    "an array that claims a terabyte": b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, "
    b"'shape': (1000000000000,), }".ljust(118)
    + b"\n",
}


@pytest.mark.parametrize("case", WRONG_ARRAYS)
def test_wrong_arrays_leave_their_trial_out(directory: Path, case: str) -> None:
    (file,) = (directory / "trials").iterdir()
    file.write_bytes(WRONG_ARRAYS[case])
    study = Study.load(directory)
    assert study.results() == []
    assert study.damaged == 1
    study.record(make_result(4))
    assert len(Study.load(directory).results()) == 1
    assert Study.load(directory).damaged == 0


def test_any_byte_of_the_arrays(tmp_path: Path) -> None:
    """An error, or what was written (an archive says some things twice); numpy and zipfile raise many kinds."""
    whole, file = arrays_of(make_result(4)), tmp_path / "a.npz"
    write_arrays(file, whole)
    content = file.read_bytes()
    refused = 0
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        try:
            found = read_arrays(file, list(whole))
        except Exception:
            refused += 1
        else:
            assert all(np.array_equal(found[name], whole[name]) for name in whole)
    assert refused > len(content) / 2


WRONG_ROWS = {
    "asked": "[]", "nll": '"low"', "curve": "[[1]]", "metrics": "[1]", "state": '"odd"', "arrays": "5", "steps": "true",
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_ROWS)
def test_wrong_rows_are_left_out(directory: Path, name: str) -> None:
    attribute(directory, name, WRONG_ROWS[name])
    study = Study.load(directory)
    assert study.results() == []
    assert study.damaged == 1


def test_a_key_from_outside_names_no_file_elsewhere(directory: Path) -> None:
    attribute(directory, "key", '"../../elsewhere"')
    (found,) = Study.load(directory).results()
    assert found.asked == make_result(4).asked


def test_arrays_lie_under_the_key_that_an_older_version_gave(directory: Path) -> None:
    (file,) = (directory / "trials").iterdir()
    file.rename(file.with_stem("0123456789abcdef"))
    attribute(directory, "key", '"0123456789abcdef"')
    (found,) = Study.load(directory).results()
    assert found.asked == make_result(4).asked
    assert found.example_nll is not None


def test_values_that_are_no_json_are_one_sentence(directory: Path) -> None:
    attribute(directory, "nll", "{")
    with pytest.raises(OutputError, match="must be in a storage that can be read"):
        Study.load(directory)


def test_a_wrong_fact_is_one_sentence(directory: Path) -> None:
    study = Study.load(directory)
    assert study.decode_fact("absent", float) is None
    with pytest.raises(OutputError, match="'calibration'"):
        study.decode_fact("calibration", float)


def test_any_byte_of_the_database_is_no_traceback(directory: Path) -> None:
    file = directory / "study.db"
    content = file.read_bytes()
    for place in (0, 20, 60, 100, 4096, 9000, 20000, len(content) - 50):
        file.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        with suppress(OutputError):  # whatever else is raised fails
            Study.load(directory, reading=True)


def test_a_reader_writes_nothing(directory: Path, tmp_path: Path) -> None:
    def state() -> dict[Path, tuple[int, bytes | None]]:
        return {
            path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
            for path in tmp_path.rglob("*")
        }

    os.chmod(directory, 0o500)
    before = state()
    study = Study.load(directory, reading=True)
    assert len(study.results()) == 1
    url = f"sqlite:///{tmp_path}/elsewhere.db"
    assert Study.find(directory, storage=url, reading=True) is None
    assert state() == before
    os.chmod(directory, 0o700)


def test_a_reader_sees_what_a_killed_writer_left(directory: Path, tmp_path: Path) -> None:
    """Of a file in write-ahead mode the newest rows stand beside it until somebody opens it to write."""
    study = Study.load(directory)
    study.put_fact("mode", "write-ahead from the first write")
    with closing(sqlite3.connect(directory / "study.db")) as keeps_it_open:
        keeps_it_open.execute("SELECT * FROM studies").fetchall()
        study.record(make_result(8))
        assert (directory / "study.db-wal").exists()
        assert len(Study.load(directory, reading=True).results()) == 2


def test_a_long_reader_holds_no_writer_up(directory: Path) -> None:
    study = Study.open(directory, fingerprint={"seed": 0}, resume=True)
    study.put_fact("mode", "write-ahead from the first write")
    reader = sqlite3.connect(directory / "study.db")
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM studies").fetchall()
    began = time.monotonic()
    study.record(make_result(8))
    waited = time.monotonic() - began
    assert waited < 20  # of the 30 that it would wait for a lock
    reader.close()
    study.close()
    assert [path.name for path in directory.iterdir() if path.name.startswith("study.db")] == ["study.db"]


def test_a_study_begins_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while the database is made: the folder holds no `study.db`, and a new study begins."""

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("loratune.study.database.create_study", killed)
        with pytest.raises(KeyboardInterrupt):
            Study.open(tmp_path, fingerprint={})
    assert list(tmp_path.iterdir()) == []
    Study.open(tmp_path, fingerprint={}, resume=True)


def test_threads_may_record(directory: Path) -> None:
    study = Study.load(directory)
    writers = [threading.Thread(target=study.record, args=(make_result(rank),)) for rank in (8, 16)]
    for each in writers:
        each.start()
    for each in writers:
        each.join()
    assert len(study.results()) == 3


def test_an_older_study_goes_on(directory: Path) -> None:
    """Version 1 had no digests of the tokenizer and no number; an option that it did not know has its default."""
    study_attribute(directory, "format", "1")
    now = {"seed": 0, "heal": False, "tokenizer_digest": "a", "weights_digest": "b"}
    study = Study.open(directory, fingerprint=now, resume=True, absent={"heal": False, "seed": 1})
    assert len(study.results()) == 1
    assert study.get_fact("format") == FORMAT
    with pytest.raises(OutputError, match="tokenizer_digest was 'a' and is now 'c'"):
        Study.open(directory, fingerprint=now | {"tokenizer_digest": "c"}, resume=True)
    with pytest.raises(OutputError, match="heal was False and is now True"):
        Study.open(directory, fingerprint=now | {"heal": True}, resume=True)


@pytest.mark.parametrize("version", [str(FORMAT + 1), '"2"', "0"])
def test_a_newer_study_is_one_sentence(directory: Path, version: str) -> None:
    study_attribute(directory, "format", version)
    with pytest.raises(OutputError, match=f"format 1 to {FORMAT}"):
        Study.open(directory, fingerprint={"seed": 0}, resume=True)
