"""A search that is stopped by request ends with what is known, is priced by the hour, and can be gone on with."""

import json
from pathlib import Path

import optuna
import pytest

from loratune.app.tune import CLOCK_CUT, run_tune
from loratune.costs import measuring
from loratune.errors import InputError
from loratune.files.lock import ask_to_stop, is_asked_to_stop
from loratune.study.record import Study
from loratune.tuning.options import TuneOptions
from loratune.values import Stage
from loratune.values.events import Event, TrialEnded
from study_fixture import read_events
from tiny import animal_rows, save_tiny_model, write_jsonl


def test_stop_and_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for at the first result: nothing more is begun, adapter and result are there, `--resume` does the rest."""
    monkeypatch.setattr(measuring, "SECONDS", 0.1)
    out = tmp_path / "run"
    options = {
        "model": str(save_tiny_model(tmp_path / "model")),
        "data": str(write_jsonl(tmp_path / "train.jsonl", animal_rows(120))),
        "out": str(out),
        "ranks": (2, 8),
        "budget": "8x",
        "dtype": "float32",
        "device": "cpu",
        "epochs": 1.0,
        "pack_size": 1,
    }

    def tell(event: Event) -> None:
        if isinstance(event, TrialEnded) and not event.final:
            ask_to_stop(out)

    result, code = run_tune(TuneOptions(**options, price_per_hour=3600.0), tell)
    assert code == CLOCK_CUT
    assert not is_asked_to_stop(out), "the next run is not meant"
    assert any("stopped by request" in each.claim for each in result.evidence)
    assert (out / "adapter" / "adapter_model.safetensors").exists()
    cost = json.loads((out / "result.json").read_text())["cost"]
    assert cost["price"] == pytest.approx(cost["seconds"])
    assert cost["predicted_price"] == pytest.approx(cost["predicted_seconds"])
    *_, finished = read_events(out)
    assert (finished["event"], finished["cut"], finished["stopped"]) == ("finished", True, True)
    (only,) = [each for each in Study.load(out).results() if each.asked.stage is not Stage.FINAL]
    assert 1.79e9 < only.began < only.ended

    shown = optuna.load_study(study_name=None, storage=f"sqlite:///{out}/study.db").user_attrs
    assert shown["recommended"].startswith(f"rank {result.recommended.r}, learning rate ")

    ask_to_stop(out)  # an earlier run was meant
    again, code = run_tune(TuneOptions(**options, resume=True, price_per_hour=1.0))
    assert code == 0
    assert not any("stopped by request" in each.claim for each in again.evidence)
    searched = [each for each in Study.load(out).results() if each.asked.stage is not Stage.FINAL]
    assert len(searched) > 1
    assert only.asked.key in {each.asked.key for each in searched}


@pytest.mark.parametrize("price", [0.0, -1.0, float("inf"), float("nan")])
def test_a_price_is_above_0(price: float) -> None:
    with pytest.raises(InputError, match="--price-per-hour must be above 0"):
        TuneOptions(model="m", data="d", price_per_hour=price)
