"""The main job end to end on a tiny model: what is written, resuming, repeating, and what other programs read."""

import json
import math
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import loratune
from loratune.app.tune import CLOCK_CUT, run_tune
from loratune.costs import measuring
from loratune.errors import OutputError
from loratune.reporting.result import TuneResult
from loratune.runners.local import LocalRunner
from loratune.study.record import Study
from loratune.tuning.configuration import read_options
from loratune.tuning.options import TuneOptions
from loratune.tuning.timeline import PARTS
from loratune.tuning.workbench import open_workbench
from loratune.values import Stage
from loratune.values.events import Event, Phase, TrialEnded
from study_fixture import read_events
from tiny import animal_rows, save_tiny_model, write_jsonl
from warm import WarmCommand

WISHES: dict[str, Any] = {
    "ranks": [2, 8],
    "budget": "14x",
    "dtype": "float32",
    "epochs": 2.0,
    "device": "cpu",
}


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


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("place")
    return Place(save_tiny_model(folder / "model"), write_jsonl(folder / "train.jsonl", animal_rows(160)))


@pytest.fixture(scope="module")
def done(place: Place, tmp_path_factory: pytest.TempPathFactory) -> TuneResult:
    out = tmp_path_factory.mktemp("done") / "run"
    return loratune.tune(model=place.model, data=place.data, out=out, **WISHES)


def document(result: TuneResult) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((result.directory / "result.json").read_text())
    return values


def test_everything_is_written(done: TuneResult) -> None:
    names = {path.name for path in done.directory.iterdir()}
    assert names >= {
        "adapter",
        "result.json",
        "report.html",
        "study.db",
        "loratune.toml",
        "trials",
        "events.jsonl",
    }
    assert "final" not in names
    assert {path.name for path in (done.directory / "adapter").iterdir()} >= {
        "adapter_model.safetensors",
        "adapter_config.json",
        "tokenizer.json",
        "README.md",
    }


def test_the_timeline_is_the_wall_clock(done: TuneResult) -> None:
    values = document(done)
    parts = {part["name"]: part["seconds"] for part in values["timeline"]}
    assert list(parts) == list(PARTS)
    assert sum(parts.values()) == pytest.approx(values["cost"]["seconds"], abs=0.05)
    assert min(parts["training"], parts["start-up"], parts["calibration"], parts["final run"]) > 0
    results = [r for r in Study.load(done.directory).results() if r.asked.stage is not Stage.FINAL]
    shares = sum(result.seconds for result in results)
    assert parts["training"] + parts["evaluation"] == pytest.approx(shares, rel=0.02)
    assert 1 <= values["mean_trials_in_pack"] <= len(results)


def test_its_events_tell_the_whole_story(done: TuneResult) -> None:
    events = list(read_events(done.directory))
    assert [each["event"] for each in events[:2]] == ["started", "phase began"]
    assert events[-1]["event"] == "finished"
    phases = [each["phase"] for each in events if each["event"] == "phase began"]
    assert phases == [str(phase) for phase in Phase]
    ended = [each["key"] for each in events if each["event"] == "trial ended"]
    assert ended == [result.asked.key for result in Study.load(done.directory).results()]
    (chosen,) = [each for each in events if each["event"] == "chosen"]
    assert chosen["hyper_parameters"]["r"] == done.recommended.r
    (planned,) = [each for each in events if each["event"] == "planned"]
    assert planned["model"]["layers"] == 2


def test_result_has_the_keys_that_other_programs_rely_on(done: TuneResult) -> None:
    values = document(done)
    assert set(values) - {"sensitivity"} == {
        "schema", "recommended", "metrics", "evidence", "cost", "stages", "training", "timeline",
        "mean_trials_in_pack", "verdict",
    }  # fmt: skip
    assert values["schema"] == 1
    assert set(values["recommended"]) == {
        "r", "lora_alpha", "lora_dropout", "target_modules", "learning_rate", "batch_size", "weight_decay",
        "epochs", "warmup_ratio", "max_length",
    }  # fmt: skip
    assert set(values["metrics"]) == {"validation", "test", "base_model", "default_recipe", "fair_opponent"}
    assert set(values["metrics"]["test"]) == {"nll", "perplexity", "exact_match", "accuracy", "f1"}
    assert set(values["cost"]) >= {
        "seconds", "trained_tokens", "trials", "predicted_seconds", "peak_memory_bytes",
    }  # fmt: skip
    for each in values["evidence"]:
        assert set(each) == {"claim", "value", "unit", "interval", "margin", "holds", "state"}


def test_it_learns_and_says_against_what(done: TuneResult) -> None:
    test = done.metrics["test"]
    assert test["nll"] < done.metrics["base_model"]["test"]["nll"] - 0.5
    assert test["accuracy"] > done.metrics["base_model"]["test"]["accuracy"]
    claims = [each.claim for each in done.evidence]
    assert any("default recipe" in claim for claim in claims)
    assert any("base model" in claim for claim in claims)


def test_the_adapter_is_an_ordinary_peft_adapter(done: TuneResult, place: Place) -> None:
    """The NLL that plain transformers and PEFT compute from the folder is the one in result.json."""
    options = TuneOptions(
        model=str(place.model), data=str(place.data), dtype="float32", device="cpu", epochs=WISHES["epochs"]
    )
    with open_workbench(options, targets=options.target_modules, ranks=(), epochs=1.0) as bench:
        model = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(place.model, dtype=torch.float32), done.directory / "adapter"
        ).eval()
        total, count = 0.0, 0
        for i in range(len(bench.data.test)):
            tokens, supervised = bench.data.test.row(i)
            ids = torch.tensor(tokens.tolist())
            with torch.no_grad():
                likelihood = model(input_ids=ids[None]).logits[0].log_softmax(-1)
            chosen = [p for p in range(1, len(ids)) if supervised[p]]
            total -= sum(float(likelihood[p - 1, ids[p]]) for p in chosen)
            count += len(chosen)
    assert total / count == pytest.approx(done.metrics["test"]["nll"], rel=1e-5)


def test_peft_config_of_the_recommendation(done: TuneResult) -> None:
    config = done.recommended.lora_config()
    saved = json.loads((done.directory / "adapter" / "adapter_config.json").read_text())
    assert config.r == saved["r"] == done.recommended.r
    assert config.lora_alpha == saved["lora_alpha"]
    assert set(config.target_modules) == set(saved["target_modules"])


def test_optuna_reads_the_study(done: TuneResult) -> None:
    (name,) = optuna.get_all_study_names(f"sqlite:///{done.directory / 'study.db'}")
    study = optuna.load_study(study_name=name, storage=f"sqlite:///{done.directory / 'study.db'}")
    finished = [t for t in study.trials if t.state is optuna.trial.TrialState.COMPLETE]
    assert len(study.trials) == document(done)["cost"]["trials"]
    assert study.best_value == min(t.value for t in finished if t.value is not None)
    assert all(isinstance(t.params["r"], int) for t in finished)
    assert all(t.intermediate_values for t in finished)


def test_the_report_is_one_self_contained_page(done: TuneResult) -> None:
    page = (done.directory / "report.html").read_text(encoding="utf-8")
    assert 'src="http' not in page
    for words in ("learning rate", "Recommended", "default recipe", "alpha"):
        assert words in page


def test_report_is_drawn_again_from_the_study_alone(done: TuneResult) -> None:
    page = done.directory / "report.html"
    before = page.read_text(encoding="utf-8")
    page.unlink()
    assert loratune.report(done.directory) == page
    after = page.read_text(encoding="utf-8")
    assert abs(len(after) - len(before)) < 0.02 * len(before)


def test_a_complete_run_resumes_to_itself(done: TuneResult, place: Place) -> None:
    before = {p: p.stat().st_mtime_ns for p in done.directory.rglob("*") if p.is_file()}
    again = loratune.tune(model=place.model, data=place.data, out=done.directory, resume=True, **WISHES)
    assert again.recommended == done.recommended
    assert {p: p.stat().st_mtime_ns for p in done.directory.rglob("*") if p.is_file()} == before


def test_same_seed_same_decisions(done: TuneResult, place: Place, tmp_path: Path) -> None:
    again = loratune.tune(model=place.model, data=place.data, out=tmp_path / "again", **WISHES)
    assert again.recommended == done.recommended
    first, second = (Study.load(each.directory).results() for each in (done, again))
    assert {r.asked.key for r in first} == {r.asked.key for r in second}
    by_key = {r.asked.key: r.nll for r in second}
    assert all(math.isclose(r.nll, by_key[r.asked.key], rel_tol=1e-4) for r in first if r.finished)


def test_toml_repeats_the_run(done: TuneResult, place: Place) -> None:
    options = TuneOptions(**read_options(done.directory / "loratune.toml"))
    assert options.model == str(place.model)
    assert options.ranks == (2, 8)
    assert not options.resume


def test_another_option_does_not_resume(done: TuneResult, place: Place, tmp_path: Path) -> None:
    """A study that is not complete refuses a resumption with other options, naming the difference."""
    copy = tmp_path / "copy"
    shutil.copytree(done.directory, copy)
    (copy / "result.json").unlink()
    with pytest.raises(OutputError, match="margin"):
        loratune.tune(model=place.model, data=place.data, out=copy, resume=True, margin=0.5, **WISHES)


@pytest.mark.parametrize("strategy", ["guide", "grid", "random"])
def test_other_strategies(strategy: str, place: Place, tmp_path: Path) -> None:
    result = loratune.tune(
        model=place.model,
        data=place.data,
        out=tmp_path / strategy,
        strategy=strategy,
        metric="accuracy",
        learning_rates=[1e-3, 1e-2],
        batch_sizes=[8, 16],
        **{**WISHES, "budget": "8x"},
    )
    assert result.metrics["test"]["accuracy"] >= result.metrics["base_model"]["test"]["accuracy"]
    if strategy == "guide":
        assert set(result.recommended.target_modules) == {"q_proj", "v_proj"}
        assert result.recommended.lora_dropout == 0.05


def test_the_clock_cuts_the_search_and_the_result_is_usable(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[TrialEnded] = []

    def tell(event: Event) -> None:
        if isinstance(event, TrialEnded):
            ended.append(event)

    monkeypatch.setattr(LocalRunner, "late", property(lambda runner: bool(ended)))
    options = TuneOptions(
        model=str(place.model), data=str(place.data), out=str(tmp_path / "cut"),
        **{**WISHES, "ranks": (2, 8), "budget": "20x", "pack_size": 1},
    )  # fmt: skip
    # as if loading torch had taken a quarter of an hour
    result, code = run_tune(options, tell, started=time.monotonic() - 900)
    assert code == CLOCK_CUT
    assert result.cost["seconds"] > 900
    assert result.cost["predicted_seconds"] > 900
    assert any("clock" in each.claim for each in result.evidence)
    assert (result.directory / "adapter" / "adapter_model.safetensors").exists()
    searched = [r for r in Study.load(result.directory).results() if r.asked.stage is not Stage.FINAL]
    assert len(searched) == 1


def test_kill_and_resume(place: Place, done: TuneResult, tmp_path: Path) -> None:
    """SIGKILL in the middle of the search; the resumed run keeps what was finished and decides the same."""
    out = tmp_path / "killed"
    process = WarmCommand(
        ["tune", "--model", place.model, "--data", place.data, "--out", out, "--ranks", "2,8", "--budget", "14x",
         "--dtype", "float32", "--epochs", "2", "--device", "cpu"],
    )  # fmt: skip
    try:
        limit = time.monotonic() + 600
        while len(list(out.glob("trials/*.npz"))) < 3:
            assert process.poll() is None, "ended before it could be killed"
            assert time.monotonic() < limit
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert not (out / "result.json").exists()
    kept = {r.asked.key for r in Study.load(out).results()}
    stamps = {key: (out / "trials" / f"{key}.npz").stat().st_mtime_ns for key in kept}
    assert kept
    resumed = loratune.tune(model=place.model, data=place.data, out=out, resume=True, **WISHES)
    assert {key: (out / "trials" / f"{key}.npz").stat().st_mtime_ns for key in kept} == stamps
    assert resumed.recommended == done.recommended
    keys = [r.asked.key for r in Study.load(out).results()]
    assert len(keys) == len(set(keys))
