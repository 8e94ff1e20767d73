"""A run in each tracker, written by its real library without a network and read back; what fails is a note."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from loratune import trackers
from loratune.app.watching import tracking
from loratune.cli.main import main
from loratune.errors import InputError
from loratune.reporting.result import write_result
from loratune.trackers import make_tracker
from loratune.trackers.subscriber import Tracking
from loratune.trackers.tracker import TrackedAnswer, TrackedRun, TrackedTrial
from loratune.tuning.options import TuneOptions
from loratune.values.events import Bus, Event, Finished, Note, Phase, PhaseBegan, Started, TrialEnded
from report_fixture import make_facts, make_trial
from tiny import save_tiny_model

TRIALS = [make_trial(seed=1, r=8), make_trial(seed=2, r=2)]
SECRET = "postgresql://ann:s3cret@host/db"


def report(name: str, folder: Path) -> list[str]:
    """Two trials and an answer, as a run tells of them; returns the notes."""
    folder.mkdir()
    write_result(make_facts(), folder)
    notes: list[str] = []
    bus = Bus(lambda event: notes.append(event.text) if isinstance(event, Note) else None)
    options = TuneOptions(model="tiny", data="rows.jsonl", storage=SECRET, report_to=(name,), ranks=(2, 8))
    with tracking(options, {name: make_tracker(name)}, bus):
        bus(Started(command="tune", model="tiny", data="rows.jsonl", directory=str(folder)))
        bus(PhaseBegan(phase=Phase.SEARCHING))
        for trial in TRIALS:
            bus(TrialEnded.of(trial))
        bus(Finished(directory=str(folder), seconds=5.0))
    return notes


def no_secret(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if b"s3cret" in path.read_bytes()]


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert report("tensorboard", tmp_path / "run") == []
    folder = tmp_path / "run" / "tensorboard"
    first, second = sorted(folder.glob("trial-*"))
    for place, trial in ((first, TRIALS[0]), (second, TRIALS[1])):
        found = EventAccumulator(str(place)).Reload()
        curve = [(each.step, each.value) for each in found.Scalars("validation/nll")]
        assert [step for step, _ in curve] == [point.step for point in trial.curve]
        assert [value for _, value in curve] == pytest.approx([point.validation_nll for point in trial.curve])
        assert found.Scalars("end/nll")[0].value == pytest.approx(trial.nll)
        assert "_hparams_/session_start_info" in found.summary_metadata
    answer = EventAccumulator(str(folder / "run")).Reload()
    assert answer.Scalars("test/accuracy")[0].value == pytest.approx(0.846)
    files = answer.Tensors("files/text_summary")[0].tensor_proto.string_val[0].decode()
    assert str(tmp_path / "run" / "result.json") in files
    no_secret(folder)


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    assert report("mlflow", tmp_path / "run") == []
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("loratune").experiment_id
    runs = {each.info.run_name: each for each in client.search_runs([experiment])}
    parent = runs.pop("run")
    assert parent.info.status == "FINISHED"
    assert parent.data.params["ranks"] == "2,8"
    assert parent.data.params["recommended.r"] == "8"
    assert parent.data.metrics["test/accuracy"] == pytest.approx(0.846)
    assert parent.data.tags["loratune.result"] == str(tmp_path / "run" / "result.json")
    assert [runs[name].data.params["r"] for name in sorted(runs)] == ["8", "2"]
    child = runs[min(runs)]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    curve = client.get_metric_history(child.info.run_id, "validation/nll")
    assert [(each.step, each.value) for each in curve] == [
        (p.step, p.validation_nll) for p in TRIALS[0].curve
    ]
    no_secret(tmp_path)


def records(file: Path) -> Iterator[bytes]:
    """Of wandb's offline file: a head of 7 bytes, then blocks of 32 KiB with the parts of records (LevelDB's log)."""
    content, place, whole = file.read_bytes(), 7, b""
    while place < len(content):
        left = 2**15 - place % 2**15
        if left < 7:
            place += left
            continue
        size, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        whole += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield whole
            whole = b""


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    assert report("wandb", tmp_path / "run") == []
    curves, configs = {}, {}
    for file in (tmp_path / "run").glob("wandb/offline-run-*/*.wandb"):
        values, name = [], ""
        for data in records(file):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                name = record.run.display_name
                assert record.run.run_group == "run"
                configs[name] = {each.key: json.loads(each.value_json) for each in record.run.config.update}
            for each in record.history.item:
                if (each.key or "/".join(each.nested_key)) == "validation/nll":
                    values.append(json.loads(each.value_json))
        curves[name] = values
    first, second = sorted(curves.keys() - {"recommended"})
    for name, trial in ((first, TRIALS[0]), (second, TRIALS[1])):
        assert curves[name] == [point.validation_nll for point in trial.curve]
        assert configs[name]["r"] == trial.trial.hyper_parameters.r
    assert configs["recommended"]["r"] == 8
    no_secret(tmp_path)


def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio")
    # where its files are is settled as it is imported
    from trackio import sqlite_storage, utils

    for module in (sqlite_storage, utils):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    assert report("trackio", tmp_path / "run") == []
    store = sqlite_storage.SQLiteStorage
    first, second, answer = sorted(store.get_runs("loratune"), key=lambda name: "recommended" in name)
    for name, trial in zip(sorted((first, second)), TRIALS, strict=True):
        logs = [each for each in store.get_logs("loratune", name) if "validation/nll" in each]
        assert [each["step"] for each in logs] == [point.step for point in trial.curve]
        assert [each["validation/nll"] for each in logs] == [point.validation_nll for point in trial.curve]
    assert store.get_logs("loratune", answer)[0]["test/accuracy"] == pytest.approx(0.846)
    no_secret(tmp_path)


class Failing:
    """A tracker whose service has gone after the first trial."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def begin(self, run: TrackedRun) -> None:
        self.calls.append("begin")

    def trial(self, trial: TrackedTrial) -> None:
        self.calls.append("trial")
        raise ConnectionError(f"no route to {SECRET}\nand more")

    def answer(self, answer: TrackedAnswer) -> None:
        self.calls.append("answer")

    def close(self) -> None:
        self.calls.append("close")


def test_a_tracker_that_fails_is_one_note_without_secrets(tmp_path: Path) -> None:
    told: list[Event] = []
    tracker = Failing()
    hidden = {SECRET: "***"}

    def hide(text: str, secrets: Mapping[str, str] = hidden) -> str:
        return text.replace(SECRET, secrets[SECRET])

    with Tracking("wandb", tracker, {}, told.append, hide=hide) as tracking:
        tracking(Started(command="tune", model="m", data="d", directory=str(tmp_path)))
        tracking(PhaseBegan(phase=Phase.SEARCHING))
        for trial in TRIALS:
            tracking(TrialEnded.of(trial))
        tracking(Finished(directory=str(tmp_path), seconds=1.0))
    assert tracker.calls == ["begin", "trial", "close"]
    assert told == [
        Note(
            text="--report-to wandb failed and is left out from here on (ConnectionError: no route to ***); "
            "the run continues."
        )
    ]


def test_a_run_that_was_refused_has_no_tracker_begun() -> None:
    tracker = Failing()
    with suppress(InputError), Tracking("wandb", tracker, {}, lambda event: None) as tracking:
        tracking(Started(command="tune", model="m", data="d"))
        raise InputError("refused")
    assert tracker.calls == ["close"]


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    monkeypatch.setattr("sys.argv", ["loratune", "tune", "--data", "d.jsonl", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_an_unknown_tracker_names_the_nearest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(
        monkeypatch, capsys, "--model", "m", "--report-to", "mlflow", "--report-to", "wandb,tensorbord"
    )
    assert "got 'tensorbord' (did you mean tensorboard?)" in said


def test_a_missing_library_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    model, out = save_tiny_model(tmp_path / "model"), tmp_path / "out"
    said = refused(monkeypatch, capsys, "--model", model, "--report-to", "wandb", "--out", out)
    assert "pip install 'loratune[wandb]'" in said
    assert not out.exists()
