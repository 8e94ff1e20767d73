"""A calibration is measured once for a device, a model's shape and a kind of rows."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

import loratune
from loratune.costs import measuring
from loratune.tuning import remembered
from tiny import animal_rows, save_tiny_model, write_jsonl

WISHES: dict[str, Any] = {"ranks": [2, 8], "budget": "8x", "epochs": 1.0, "dtype": "float32", "device": "cpu"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("place")
    model = save_tiny_model(folder / "model")
    return {"model": model, "data": write_jsonl(folder / "train.jsonl", animal_rows(100)), **WISHES}


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(measuring, "SECONDS", 0.05)
    for module in (measuring, remembered):
        monkeypatch.setattr(module, "is_shared", lambda: False)
    monkeypatch.setenv("LORATUNE_CALIBRATIONS", str(tmp_path / "calibrations"))
    return tmp_path / "calibrations"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each measured step."""
    calls: list[int] = []
    real = measuring.measure_step

    def counting(*arguments: Any, **keywords: Any) -> Any:
        calls.append(1)
        return real(*arguments, **keywords)

    monkeypatch.setattr(measuring, "measure_step", counting)
    return calls


def test_the_second_plan_measures_nothing_and_plans_alike(
    place: dict[str, Any], kept: Path, measured: list[int]
) -> None:
    first = loratune.plan(**place)
    assert measured
    assert len(list(kept.iterdir())) == 1
    measured.clear()
    second = loratune.plan(**place)
    assert not measured
    assert second.calibration == first.calibration
    assert second.plan.stages == first.plan.stages
    loratune.plan(**place, recalibrate=True)
    assert measured


def test_what_neighbours_slowed_is_not_kept(
    place: dict[str, Any], kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (measuring, remembered):
        monkeypatch.setattr(module, "is_shared", lambda: True)
    monkeypatch.setattr(measuring, "fastest", lambda rate: 1)
    assert loratune.plan(**place).calibration.threads == 1
    assert not kept.exists()


def test_other_circumstances_and_damaged_or_old_files_are_measured_anew(
    place: dict[str, Any], kept: Path, measured: list[int]
) -> None:
    loratune.plan(**place)
    (file,) = kept.iterdir()
    good = file.read_text()
    for damaged in ("", "{", "[]", '{"slots": 1}', good.replace('"slots": ', '"slots": "x", "s": ')):
        measured.clear()
        file.write_text(damaged)
        loratune.plan(**place)
        assert measured, damaged
    measured.clear()
    os.utime(file, (0, 0))
    loratune.plan(**place)
    assert measured
    measured.clear()
    loratune.plan(**place, pack_size=2)
    assert measured
    assert len(list(kept.iterdir())) == 2
    assert json.loads(file.read_text())["slots"] >= 1


def test_a_cache_that_cannot_be_written_is_none(
    place: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORATUNE_CALIBRATIONS", str(tmp_path / "file"))
    assert loratune.plan(**place).calibration.slots >= 1
