"""Going on with a run: killed, interrupted, cut by the clock, complete; with the study here or elsewhere."""

import json
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import loratune
from loratune.app.tune import CLOCK_CUT, run_tune
from loratune.costs import measuring
from loratune.errors import InputError, OutputError
from loratune.reporting.result import TuneResult
from loratune.runners.local import LocalRunner
from loratune.study.record import Study
from loratune.tuning.configuration import read_options
from loratune.tuning.options import TuneOptions, keyword_options
from loratune.tuning.resumption import model_digest, notice_times, resume_command
from loratune.values import Stage
from loratune.values.events import Event, Note, Tell, TrialEnded, discard
from tiny import animal_rows, save_tiny_model, write_jsonl
from warm import WarmCommand

WISHES: dict[str, Any] = {"ranks": [2, 8], "budget": "8x", "epochs": 1.0, "dtype": "float32", "device": "cpu"}


@pytest.fixture(scope="module", autouse=True)
def _short_calibration() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setattr(measuring, "SECONDS", 0.1)
    yield
    patch.undo()


@dataclass(frozen=True)
class Place:
    model: Path
    data: Path

    def tune(self, out: Path, **options: Any) -> TuneResult:
        return loratune.tune(model=self.model, data=self.data, out=out, **(WISHES | options))

    def watched(self, out: Path, tell: Tell, **options: Any) -> tuple[TuneResult, int]:
        values = {"model": self.model, "data": self.data, "out": out} | WISHES | options
        return run_tune(TuneOptions(**keyword_options(values)), tell)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("place")
    return Place(save_tiny_model(folder / "model"), write_jsonl(folder / "train.jsonl", animal_rows(100)))


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('database') / 'all.db'}"


@pytest.fixture(scope="module")
def done(place: Place, tmp_path_factory: pytest.TempPathFactory, elsewhere: str) -> TuneResult:
    """A complete run whose study is in a database elsewhere."""
    return place.tune(tmp_path_factory.mktemp("done") / "run", storage=elsewhere)


@pytest.fixture(scope="module")
def here(place: Place, tmp_path_factory: pytest.TempPathFactory) -> TuneResult:
    """A complete run with its own study.db."""
    return place.tune(tmp_path_factory.mktemp("here") / "run")


@pytest.fixture
def copy(here: TuneResult, tmp_path: Path) -> Path:
    return Path(shutil.copytree(here.directory, tmp_path / "copy"))


def searched(directory: Path, storage: str | None = None) -> dict[str, int]:
    """Every searched trial's file and when it was written."""
    results = Study.load(directory, storage=storage).results()
    keys = [result.asked.key for result in results if result.asked.stage is not Stage.FINAL]
    assert len(keys) == len(set(keys))
    return {key: (directory / "trials" / f"{key}.npz").stat().st_mtime_ns for key in keys}


def refused(place: Place, out: Path, says: str, **options: Any) -> None:
    """`OutputError` before the model is loaded, and nothing is touched."""
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(OutputError, match=says):
        place.tune(out, resume=True, **options)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_a_study_elsewhere(done: TuneResult, place: Place, elsewhere: str) -> None:
    names = {path.name for path in done.directory.iterdir()}
    assert names >= {"adapter", "result.json", "loratune.toml", "trials"}
    assert "study.db" not in names
    assert read_options(done.directory / "loratune.toml")["storage"] == elsewhere
    (done.directory / "report.html").unlink()
    assert loratune.report(done.directory).exists()
    assert place.tune(done.directory, resume=True, storage=elsewhere).recommended == done.recommended


def test_a_study_elsewhere_must_be_named(
    done: TuneResult, place: Place, elsewhere: str, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(done.directory, tmp_path / "run"))
    toml = out / "loratune.toml"
    toml.write_text("".join(line for line in toml.open() if not line.startswith("storage")))
    refused(place, out, "name the database by --storage")
    with pytest.raises(OutputError, match="name the database by --storage"):
        loratune.report(out)
    assert loratune.report(out, storage=elsewhere) == out / "report.html"


def test_a_server_that_only_the_folder_names_is_not_called(tmp_path: Path) -> None:
    """The folder may come from anybody; no driver is even loaded."""
    (tmp_path / "loratune.toml").write_text('storage = "postgresql+psycopg2://ann@stranger.example/db"\n')
    with pytest.raises(InputError, match=r"only called if you name it too; add it by --storage URL"):
        loratune.report(tmp_path)


def test_a_folder_without_a_study_is_refused(place: Place, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"somebody's work")
    (tmp_path / "result.json").write_text("{}")
    refused(place, tmp_path, "holds something else")


@pytest.mark.parametrize(
    ("name", "value"), [("margin", 0.5), ("ranks", [2, 4]), ("seed", 3), ("epochs", 2.0)]
)
def test_a_complete_run_refuses_other_options(copy: Path, place: Place, name: str, value: object) -> None:
    refused(place, copy, name, **{name: value})


def test_another_model_is_refused(copy: Path, place: Place, tmp_path: Path) -> None:
    """The same path, but other weights."""
    model = tmp_path / "model"
    shutil.copytree(place.model, model)
    mine = Place(model, place.data)
    mine.tune(tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(model)
    save_tiny_model(model, seed=1)
    with pytest.raises(OutputError, match="model_digest"):
        mine.tune(tmp_path / "run", resume=True)


def test_model_digest(place: Place, tmp_path: Path) -> None:
    again = save_tiny_model(tmp_path / "again")
    assert model_digest(str(again)) == model_digest(str(place.model))
    config = again / "config.json"
    config.write_text(config.read_text().replace("1e-06", "1e-05"))
    changed = save_tiny_model(tmp_path / "changed", seed=1)
    assert len({model_digest(str(each)) for each in (place.model, again, changed)}) == 3


def _forget_facts(out: Path) -> None:
    """As after a kill between the creation of the study and its first facts."""
    with closing(sqlite3.connect(out / "study.db")) as database, database:
        shown = "DELETE FROM study_user_attributes WHERE key IN ('fingerprint', 'metric')"
        ours = "DELETE FROM study_system_attributes WHERE key IN ('loratune:calibration', 'loratune:budget')"
        assert [database.execute(each).rowcount for each in (shown, ours)] == [2, 2]


def _forget_toml(out: Path) -> None:
    (out / "loratune.toml").unlink()


@pytest.mark.parametrize("forget", [_forget_facts, _forget_toml])
def test_what_a_kill_left_out_is_written(
    copy: Path, here: TuneResult, place: Place, forget: Callable[[Path], None]
) -> None:
    toml = (copy / "loratune.toml").read_text()
    (copy / "result.json").unlink()
    forget(copy)
    before = searched(copy)
    again = place.tune(copy, resume=True)
    assert again.recommended == here.recommended
    assert searched(copy) == before
    assert (copy / "loratune.toml").read_text() == toml.replace(str(here.directory), str(copy))
    study = Study.load(copy)
    assert study.get_fact("budget")["runs"] == 8.0
    assert study.get_fact("calibration")["slots"] >= 1
    with pytest.raises(OutputError, match="margin"):
        study.check({"margin": 0.5})


def test_the_directory_is_enough(copy: Path, here: TuneResult) -> None:
    """Wherever it lies now; another budget than the run's is more work, and other options are not the run's."""
    assert loratune.resume(copy).recommended == here.recommended
    with pytest.raises(OutputError, match="metric was 'nll' and is now 'exact_match'"):
        loratune.resume(copy, metric="exact_match")


def test_a_complete_run_goes_on_with_another_budget(copy: Path, place: Place) -> None:
    before = searched(copy)
    calibration = Study.load(copy).get_fact("calibration")
    place.tune(copy, resume=True, budget="14x")
    after = searched(copy)
    assert before.items() < after.items()
    study = Study.load(copy)
    assert study.get_fact("calibration") == calibration
    assert study.get_fact("budget")["runs"] == 14.0
    assert read_options(copy / "loratune.toml")["budget"] == "14x"
    complete = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    place.tune(copy, resume=True, budget="14x")
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == complete


class FirstTrialOnly:
    """Lets the clock run out when the first trial of the search has ended."""

    over = False

    def __call__(self, event: Event) -> None:
        self.over = self.over or isinstance(event, TrialEnded)


def test_a_cut_run_goes_on(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that was never cut decides: both price their waves by packs of one, which the study keeps."""
    whole = place.tune(tmp_path / "whole", pack_size=1)
    out, watch = tmp_path / "cut", FirstTrialOnly()
    with monkeypatch.context() as patch:
        patch.setattr(LocalRunner, "late", property(lambda runner: watch.over))
        result, code = place.watched(out, watch, pack_size=1)
    assert code == CLOCK_CUT
    assert any("--resume" in each.claim for each in result.evidence)
    first = searched(out)
    assert len(first) == 1
    again, code = place.watched(out, discard, resume=True)
    assert code == 0
    assert again.recommended == whole.recommended
    assert not any("clock" in each.claim for each in again.evidence)
    after = searched(out)
    assert after.keys() == searched(whole.directory).keys()
    assert first.items() < after.items()


def test_the_clock_of_a_continuation_starts_anew(copy: Path, place: Place) -> None:
    """Of a budget in time: what a complete run has used does not count, or it could never go on."""
    Study.load(copy).put_fact("seconds", 5000.0)
    _, code = place.watched(copy, discard, resume=True, budget="600s")
    assert code == 0
    assert loratune.report(copy).exists()


def test_costs_of_all_parts_count(copy: Path, place: Place) -> None:
    """Seconds add up; of memory it is the most that any part has held."""
    study, large = Study.load(copy), 2**50
    assert 2**27 < study.get_fact("peak_bytes") < 2**36
    study.put_fact("seconds", 5000.0)
    study.put_fact("peak_bytes", large)
    place.tune(copy, resume=True, budget="14x")
    cost = json.loads((copy / "result.json").read_text())["cost"]
    assert cost["peak_memory_bytes"]["measured"] == large
    assert 5000 < cost["seconds"] < 6000


def command(place: Place, out: Path) -> WarmCommand:
    words = ["tune", "--model", str(place.model), "--data", str(place.data), "--out", str(out)]
    for name, value in WISHES.items():
        words += [f"--{name}", ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    return WarmCommand(words)


def wait_for(process: WarmCommand, out: Path, pattern: str, count: int = 1) -> None:
    limit = time.monotonic() + 600
    while len(list(out.glob(pattern))) < count:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < limit
        time.sleep(0.005)


def test_interrupted_by_the_user(place: Place, here: TuneResult, tmp_path: Path) -> None:
    out = tmp_path / "my run"
    process = command(place, out)
    try:
        wait_for(process, out, "trials/*.npz", 2)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, said
    (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert f"loratune tune --config '{out / 'loratune.toml'}' --resume" in error
    assert "Traceback" not in said
    kept = searched(out)
    assert kept
    again = loratune.tune(**{**read_options(out / "loratune.toml"), "resume": True})
    assert kept.items() <= searched(out).items()
    assert again.recommended == here.recommended


def test_killed_in_the_final_run(place: Place, here: TuneResult, tmp_path: Path) -> None:
    """SIGKILL when the first final adapter is kept: nothing that was finished is trained again."""
    out = tmp_path / "killed"
    process = command(place, out)
    try:
        wait_for(process, out, "final/*")
        process.kill()
    finally:
        process.kill()
        process.communicate()
    assert not (out / "result.json").exists()
    recorded = [out / "trials" / f"{result.asked.key}.npz" for result in Study.load(out).results()]
    files = {path: path.stat().st_mtime_ns for path in recorded}
    kept = searched(out)
    again = place.tune(out, resume=True)
    assert searched(out) == kept
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert again.recommended == here.recommended
    assert (out / "adapter" / "adapter_model.safetensors").exists()
    assert not (out / "final").exists()


def test_the_resume_command_masks_secrets() -> None:
    options = TuneOptions(model="m", data="d", out="run", storage="postgresql://ann:s3cret@host/db")
    assert resume_command(options) == (
        "loratune tune --config run/loratune.toml --resume --storage 'postgresql://ann:***@host/db'"
    )


def test_weights_written_since_the_study_began_are_told_once(place: Place, tmp_path: Path) -> None:
    """A sample of their bytes cannot see every change; a copy of the same bytes is no reason to stop."""
    model = Path(shutil.copytree(place.model, tmp_path / "model"))
    study, told = Study.open(tmp_path / "run", fingerprint={}), list[Event]()
    options = TuneOptions(model=str(model), data="d")
    for times in (0, 0, 1):
        os.utime(model / "model.safetensors", (times, times))
        notice_times(study, options, told.append)
    notice_times(study, options, told.append)
    (note,) = told
    assert isinstance(note, Note)
    assert "written or copied since the study began" in note.text
