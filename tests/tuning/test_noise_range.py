"""The measured noise scale in the plan of a search: when it is measured, what it sets, that it is kept and told."""

import json
from pathlib import Path
from typing import Any

import pytest

import loratune
from loratune.costs import measuring
from loratune.files.lock import FolderLock
from loratune.maths.laws import useful_batches
from loratune.runners.local import LocalRunner
from loratune.tuning.experience import Corrections
from loratune.tuning.options import TuneOptions
from loratune.tuning.resumption import begin, open_study, price
from loratune.tuning.workbench import open_workbench
from loratune.values import NoiseScale
from loratune.values.events import discard
from loratune.values.plain import from_plain, to_plain
from tiny import animal_rows, save_tiny_model, write_jsonl


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("place")
    return {
        "model": str(save_tiny_model(folder / "model")),
        "data": str(write_jsonl(folder / "train.jsonl", animal_rows(1500))),
        "ranks": (2,),
        "learning_rates": (1e-2, 3e-2),
        "dtype": "float32",
        "device": "cpu",
        "epochs": 3.0,
        "no_ledger": True,
    }


@pytest.fixture(autouse=True)
def _short_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "SECONDS", 0.1)


def test_it_is_measured_where_batch_sizes_are_compared_and_sets_their_range(place: dict[str, Any]) -> None:
    found = loratune.plan(**place, budget="60x")
    low, high = found.context.prior.useful_batches or (0.0, 0.0)
    assert 8 <= low < high, "the law never goes below 8, and the upper end is twice its value at least"
    assert found.corrections.batches == (low, high)
    (told,) = (note for note in found.corrections.notes if "noise scale" in note)
    assert f"batch sizes from {low:g} to {high:g} are worth trying" in told
    again = loratune.plan(**place, budget="60x")
    assert again.corrections == found.corrections, "no clock in it"
    for changes in ({"budget": "3x"}, {"budget": "60x", "batch_sizes": (8, 16)}):
        plain = loratune.plan(**(place | changes))
        assert plain.context.prior.useful_batches is None
        assert not [note for note in plain.corrections.notes if "noise scale" in note]


def test_a_resumed_search_keeps_the_range_it_began_with(
    place: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = TuneOptions(**place, budget="60x", out=str(tmp_path / "run"))
    with open_workbench(options, targets=options.target_modules, ranks=(), epochs=3.0) as bench:
        first = price(options, bench, None, 0.0, discard)
        study = open_study(options, bench, FolderLock(options.directory), discard)
        begin(study, options, first)
        monkeypatch.setattr(LocalRunner, "run", None)  # calling it would fail
        second = price(options, bench, study, 0.0, discard)
    assert first.context.prior.useful_batches is not None
    assert second.context.prior.useful_batches == first.context.prior.useful_batches
    assert second.corrections == first.corrections


def test_corrections_come_back_from_json_also_from_before_there_was_a_range() -> None:
    kept = Corrections(rate=2.0, notes=("Told.",), batches=(8.0, 32.0))
    assert from_plain(Corrections, json.loads(json.dumps(to_plain(kept)))) == kept
    assert from_plain(Corrections, {"rate": 2.0, "rank": 1.0, "notes": ["Told."]}).batches is None


def test_the_range_is_the_laws_at_the_ends_of_the_interval() -> None:
    noise = NoiseScale(rows=200.0, low=130.0, high=600.0, steps=30)
    assert useful_batches(rows=100_000, epochs=1.0, noise=noise) == (32, 128)  # of 130/4 and 600/4 rows
    assert useful_batches(rows=2_000, epochs=3.0, noise=noise) == (16, 32), "300 steps are 20 rows each"
    early = NoiseScale(rows=4.5, low=3.0, high=7.0, steps=30)
    assert useful_batches(rows=2_000, epochs=3.0, noise=early) == (8, 16), "no smaller than 8"
    banking = NoiseScale(rows=24.3, low=18.2, high=34.5, steps=32)
    assert useful_batches(rows=2_000, epochs=3.0, noise=banking) == (8, 16), (
        "8 and 16 tie there, 4 and 32 lose"
    )
    assert useful_batches(rows=200_000, epochs=1.0, noise=early) == (8, 64), "early is a lower end only"
    endless = NoiseScale(rows=float("inf"), low=130.0, high=float("inf"), steps=30)
    assert useful_batches(rows=100_000, epochs=1.0, noise=endless) == (32, 256)
