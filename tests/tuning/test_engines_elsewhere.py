"""A whole search whose driver has no model in its process: every job goes to a pool."""

from pathlib import Path
from typing import Any

import pytest

from loratune.app.recommend import recommend
from loratune.app.tune import run_tune
from loratune.costs import measuring
from loratune.engine.pack import PackEngine
from loratune.model.base import BaseModel
from loratune.runners.engines import LocalEngines
from loratune.runners.processes import in_processes
from loratune.study.record import Study
from loratune.tuning.options import TuneOptions
from tiny import animal_rows, save_tiny_model, write_jsonl

METRIC = "generated:own_metrics:wrong_characters"


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TuneOptions:
    monkeypatch.setattr(measuring, "SECONDS", 0.05)
    monkeypatch.setenv("LORATUNE_CALIBRATIONS", str(tmp_path / "calibrations"))
    return TuneOptions(
        model=str(save_tiny_model(tmp_path / "model")),
        data=str(write_jsonl(tmp_path / "train.jsonl", animal_rows(60))),
        out=str(tmp_path / "run"),
        dtype="float32",
        device="cpu",
        strategy="grid",
        metric=METRIC,
        ranks=(4, 2),
        learning_rates=(1e-2,),
        batch_sizes=(8,),
        epochs=1.0,
        budget="8x",
        no_ledger=True,
    )


def test_nothing_is_built_in_the_drivers_process(
    options: TuneOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calibration, the metric's trial call, search, truncation, what finalists write, final run, scores and the
    adapter's folder."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model or an engine in the driver's process")

    for owner in (BaseModel, PackEngine, LocalEngines):
        monkeypatch.setattr(owner, "__init__", refuse)
    scratch = tmp_path / "scratch"
    result, code = run_tune(options, host=in_processes(("cpu",), scratch))
    assert code == 0
    assert result.metrics["test"][METRIC] >= 0
    assert result.metrics["test"]["nll"] < result.metrics["base_model"]["test"]["nll"]
    assert (result.directory / "adapter" / "adapter_model.safetensors").is_file()
    assert (result.directory / "report.html").is_file()
    assert not scratch.exists()
    study = Study.load(result.directory)
    assert study.get_fact("truncation")["found"]["r"] == 4
    assert study.get_fact("peak_bytes") > 0
    searched = {each.asked.key for each in study.results() if each.asked.stage != "final"}
    assert set(study.get_fact("finalists")) == searched, (
        "put down there, kept in the run's folder, read there again"
    )
    assert not (result.directory / "finalists").exists()
    with pytest.raises(AssertionError, match="in the driver's process"):
        recommend(model=options.model, data=options.data, device="cpu")
