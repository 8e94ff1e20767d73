"""`loratune worker`: a search whose trials others train comes to what one process comes to; bad input in a sentence."""

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import loratune
from loratune.app.worker import run_worker
from loratune.costs import measuring
from loratune.data.sources import DataOptions
from loratune.errors import InputError, OutputError
from loratune.runners import shared
from loratune.runners.leases import LeaseFolder
from loratune.runners.spec import EngineSpec
from loratune.study.record import Study
from loratune.values.events import Event, Note
from tiny import animal_rows, save_tiny_model, write_jsonl


def discard(event: Event) -> None:
    """Hears nothing."""


def queue(folder: Path, **changes: Any) -> LeaseFolder:
    """One of a run that has begun."""
    place = LeaseFolder(folder / "queue")
    place.begin(replace(EngineSpec(model="m", data=DataOptions(data="d")), **changes))
    return place


def test_a_folder_without_a_study(tmp_path: Path) -> None:
    with pytest.raises(
        OutputError, match=r"A worker needs a run directory whose study takes workers, but .* has none"
    ):
        run_worker(tmp_path / "none", tell=discard)
    assert not (tmp_path / "none").exists()
    with pytest.raises(OutputError, match="has none; begin it with"):
        run_worker(tmp_path, wait="0.1s", tell=discard)


@pytest.mark.parametrize("wait", ["3x", "auto", "soon", "-1m"])
def test_a_wait_that_is_no_time(wait: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--wait must be a time such as 30m or 2h, got"):
        run_worker(tmp_path, wait=wait, tell=discard)


def test_neither_folder_nor_storage() -> None:
    with pytest.raises(InputError, match="give the run directory, or --storage"):
        run_worker(None, tell=discard)


def test_code_is_only_run_where_it_is_named(tmp_path: Path) -> None:
    queue(tmp_path, metric="os:getcwd")
    with pytest.raises(InputError, match=r"names code, the metric os:getcwd.*add --metric os:getcwd"):
        run_worker(tmp_path, tell=discard)


def test_a_queue_that_is_not_ours(tmp_path: Path) -> None:
    queue(tmp_path)
    for text in (json.dumps({"format": 7}), "[]", "{", json.dumps({"format": 1, "engine": {"model": 3}})):
        (tmp_path / "queue" / "engine.json").write_text(text)
        with pytest.raises(OutputError, match="must be of this version of loratune, but"):
            run_worker(tmp_path, tell=discard)


def test_a_run_that_is_complete_needs_no_worker(tmp_path: Path) -> None:
    queue(tmp_path).close()
    notes: list[str] = []
    assert (
        run_worker(tmp_path, tell=lambda event: notes.append(event.text) if isinstance(event, Note) else None)
        == 0
    )
    assert notes == [f"{tmp_path} is complete; nothing to do."]


def test_a_search_that_workers_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal says which directory; trials, losses and choice are those of one process."""
    monkeypatch.setattr(measuring, "SECONDS", 0.05)
    monkeypatch.setattr(shared, "_LOOK", 0.02)
    monkeypatch.setenv("LORATUNE_CALIBRATIONS", str(tmp_path / "calibrations"))
    place: dict[str, Any] = {
        "model": save_tiny_model(tmp_path / "model"), "data": write_jsonl(tmp_path / "train.jsonl", animal_rows(60)),
        "dtype": "float32", "device": "cpu", "strategy": "grid", "ranks": [4, 2], "learning_rates": [1e-2],
        "batch_sizes": [8], "epochs": 1.0, "budget": "8x", "no_ledger": True,
    }  # fmt: skip
    alone = loratune.tune(out=tmp_path / "alone", **place)
    storage, trained = f"journal:///{tmp_path}/study.log", list[int]()

    def work() -> None:
        trained.append(run_worker(tmp_path / "run", device="cpu", wait="5m", tell=discard))

    hand = threading.Thread(target=work)
    hand.start()
    found = loratune.tune(out=tmp_path / "run", devices=["workers"], storage=storage, **place)
    hand.join()
    losses = [
        {each.asked.key: each.nll for each in Study.load(result.directory, storage=url).results()}
        for result, url in ((alone, None), (found, storage))
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert found.recommended == alone.recommended
    assert trained[0] >= 2
    assert [file.name for file in (tmp_path / "run" / "queue").iterdir()] == ["closed"]
    with pytest.raises(
        OutputError, match=r"--storage must hold one study that takes workers .* but it has none"
    ):
        run_worker(None, storage=storage, tell=discard)
