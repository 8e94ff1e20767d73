"""Every command but tune and demo, as other programs and people call it: on the tiny model, in this process."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
from peft import PeftModel
from transformers import AutoModelForCausalLM

import loratune
from command_fixture import Place, Shell
from loratune.cli.commands import app
from loratune.costs import measuring
from loratune.errors import HyperParameterError
from loratune.files.lock import FolderLock
from loratune.values import HyperParameters

pytest_plugins = ["command_fixture"]

TRAINING = ("--rank", "4", "--learning-rate", "1e-2", "--batch-size", "8", "--epochs", "2")


@pytest.fixture(scope="module", autouse=True)
def _short_calibration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setattr(measuring, "SECONDS", 0.05)
    patch.setenv("COLUMNS", "100")
    yield
    patch.undo()


def test_version_and_bare_call(shell: Shell) -> None:
    assert shell("--version").out == f"loratune {loratune.__version__}\n"
    bare = shell()
    assert all(name in bare.out for name in OPTIONS)


# The names that other programs call; one that disappears breaks them, one that comes in is theirs to know.
COMMON = (
    "data validation test prompt-column completion-column template max-length train-rows validation-rows "
    "test-rows seed model dtype device device-memory config json"
)
SEARCH = (
    "budget strategy metric margin ranks learning-rates batch-sizes target-modules epochs warmup-ratio "
    "regularise tune-targets layer-ranks heal patience price-per-hour pack-size recalibrate devices from-config "
    "ray shard-base proxy betas max-new-tokens objective recompute task variants tune-variants"
)
LEDGER = "from-study ledger no-ledger"
OPTIONS = {
    "tune": f"{COMMON} {SEARCH} {LEDGER} out storage resume report-to hash-weights json-lines",
    "plan": f"{COMMON} {SEARCH} {LEDGER} json-lines",
    "worker": "storage device device-memory metric wait",
    "recommend": f"{COMMON} {LEDGER} probe objective recompute task",
    "init": "model prompt-column completion-column template out",
    "ledger": "json",
    "train": f"{COMMON} rank lora-alpha lora-dropout target-modules learning-rate batch-size weight-decay epochs "
    "warmup-ratio patience out json-lines beta objective recompute task use-rslora loraplus-lr-ratio use-dora",
    "memory": "model rank batch-size max-length trials dtype device device-memory target-modules json recompute "
    "task",
    "report": "storage format",
    "watch": "port",
    "export": "to out model json",
    "generate": "max-new-tokens model device json",
    "merge": "out model device",
    "selfcheck": "model dtype device steps json",
    "doctor": "json",
    "demo": "out fresh no-fresh",
}


def options_of_command(name: str) -> set[str]:
    command = typer.main.get_group(app).commands[name]  # type: ignore[attr-defined]
    return {
        flag.removeprefix("--")
        for parameter in command.params
        for flag in (*parameter.opts, *parameter.secondary_opts)
        if flag.startswith("--")
    }


@pytest.mark.parametrize("command", OPTIONS)
def test_the_options_are_frozen(command: str) -> None:
    assert options_of_command(command) == set(OPTIONS[command].split())


def test_commands_are_frozen() -> None:
    assert set(typer.main.get_group(app).commands) == set(OPTIONS)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", 0), ("lora_alpha", 0.0), ("learning_rate", -1.0), ("batch_size", 0), ("lora_dropout", 1.0),
        ("weight_decay", -0.1), ("epochs", 0.0), ("warmup_ratio", 1.0), ("target_modules", ()),
    ],
)  # fmt: skip
def test_a_hyper_parameter_out_of_range_names_an_option_that_exists(field: str, value: Any) -> None:
    good = {"r": 8, "lora_alpha": 16.0, "learning_rate": 1e-3, "batch_size": 8}
    with pytest.raises(HyperParameterError, match=f"^{field} must be ") as refused:
        HyperParameters(**good | {field: value})
    flag, _, works = str(refused.value).rpartition("give e.g. --")[2].rstrip(".").partition(" ")
    assert flag in options_of_command("train")
    HyperParameters(**good | {field: (works,) if field == "target_modules" else float(works)})


@pytest.mark.parametrize("flag", ["--ranks", "--learning-rates", "--batch-sizes", "--target-modules"])
def test_an_empty_list_is_refused_by_its_name(flag: str, shell: Shell, place: Place) -> None:
    ran = shell("plan", *place.options, flag, ",")
    assert ran.code == 2
    assert flag in ran.error


def test_plan(shell: Shell, place: Place) -> None:
    wishes = ("--ranks", "2,8", "--budget", "14x")
    ran = shell("plan", *place.options, *wishes, "--json")
    assert ran.code == 0, ran.err
    told = ran.document
    assert [stage["name"] for stage in told["stages"]]
    assert told["strategy"] == "evidence"
    assert told["trials"] == sum(stage["trials"] for stage in told["stages"]) > 4
    assert told["cost"]["full_runs"] > 0
    assert told["budget"]["full_runs"] == 14  # of the seconds of one run alone
    seconds = told["predicted_seconds"]
    assert seconds["search"] > 0
    assert seconds["final"] > 0
    assert seconds["total"] > seconds["search"] + seconds["final"]
    assert told["predicted_peak_memory_bytes"] > 2**20
    assert shell.written == []

    words = shell("plan", *place.options, *wishes)
    assert all(stage["name"] in words.out for stage in told["stages"])
    assert "predicted peak memory" in words.out
    assert shell.written == []


def test_plan_as_a_function(place: Place) -> None:
    few, many = (
        loratune.plan(**place.keywords, ranks=[2, 8], epochs=1, budget=budget) for budget in ("8x", "30x")
    )
    assert few.context.wave_cost([t for stage in few.plan.stages[:1] for t in stage.examples]) <= 8
    assert few.plan.trials < many.plan.trials
    assert few.looks.count == 3
    assert few.looks.share > 0.15, "the rows are few"
    (note,) = few.notes
    assert f"3 evaluations for early stopping, each on {few.looks.rows} validation rows" in note
    assert not replace(few, looks=replace(few.looks, share=0.12)).notes
    assert few.search_seconds > 0
    assert few.limit is None
    late, in_time = (replace(few, limit=share * few.seconds).notes for share in (0.9, 1.1))
    assert len(late) == 2
    assert "its clock will cut the search" in late[0]
    assert in_time == few.notes


def test_a_plan_within_a_time_buys_fewer_runs(place: Place) -> None:
    short, long = (loratune.plan(**place.keywords, ranks=[2, 8], budget=budget) for budget in ("3m", "3h"))
    assert (short.limit, long.limit) == (180, 10_800)
    assert 0 < short.context.wishes.budget < long.context.wishes.budget


def test_recommend_reads_no_weights(shell: Shell, place: Place, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(place.model, bare)
    (bare / "model.safetensors").unlink()
    arguments = ("recommend", "--model", bare, "--data", place.data)
    ran = shell(*arguments, "--json")
    assert ran.code == 0, ran.err
    told = ran.document
    for name in ("r", "lora_alpha", "learning_rate", "batch_size", "epochs"):
        each = told["recommendation"][name]
        assert 0 < each["low"] <= each["value"] <= each["high"], name
        assert each["reason"]
    assert told["data"]["rows"] + told["data"]["validation_rows"] + told["data"]["test_rows"] == 120
    assert set(told["data"]["labels"]) == {"cat", "cow", "dog"}
    assert told["model"]["family"] == "llama"
    assert told["model"]["parameters_per_rank"] == 2 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))

    words = shell(*arguments)
    assert "learning_rate" in words.out
    assert "likely range" in words.out
    assert shell.written == []

    same = loratune.recommend(model=bare, data=place.data)
    assert json.loads(json.dumps(same.to_dict())) == told


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_train(shell: Shell, place: Place) -> None:
    ran = shell("train", *place.options, *TRAINING, "--out", "run", "--json")
    assert ran.code == 0, ran.err
    told = ran.document
    run = shell.folder / "run"
    assert json.loads((run / "result.json").read_text()) == told
    assert {path.name for path in run.iterdir()} == {"adapter", "result.json", ".lock"}
    assert told["hyper_parameters"]["r"] == 4
    assert told["hyper_parameters"]["lora_alpha"] == 8
    assert told["steps"] > 10
    metrics = told["metrics"]
    assert metrics["test"]["nll"] < metrics["base_model_test"]["nll"] - 0.5
    assert metrics["test"]["accuracy"] > metrics["base_model_test"]["accuracy"]

    base = AutoModelForCausalLM.from_pretrained(place.model, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, run / "adapter")
    assert loaded.peft_config["default"].r == 4
    assert any(bool(w.any()) for name, w in loaded.named_parameters() if "lora_B" in name)

    before = (run / "result.json").read_bytes()
    again = shell("train", *place.options, *TRAINING, "--out", "run")
    assert again.code == 2
    assert "--out" in again.error
    assert (run / "result.json").read_bytes() == before


@pytest.mark.parametrize("command", ["train", "tune"])
def test_memory_that_is_too_small_for_one_trial(command: str, shell: Shell, place: Place) -> None:
    ran = shell(command, *place.options, "--device-memory", "1MiB", "--out", "run")
    assert ran.code == 4
    assert "needs" in ran.error
    assert "the device or --device-memory has 1 MiB; lower --rank" in ran.error
    assert shell.written == []


def test_train_where_another_run_is_at_work(shell: Shell, place: Place) -> None:
    with FolderLock(shell.folder / "run") as lock:
        lock.acquire()
        ran = shell("train", *place.options, *TRAINING, "--out", "run")
    assert ran.code == 2
    assert f"in use by process {os.getpid()}" in ran.error


def test_train_as_a_function_repeats_itself(shell: Shell, place: Place) -> None:
    values = {"rank": 4, "learning_rate": 1e-2, "batch_size": 8, "target_modules": ["q_proj", "v_proj"]}
    first, second = (
        loratune.train(**place.keywords, **values, out=shell.folder / name) for name in ("one", "two")
    )
    assert first.hyper_parameters.target_modules == ("q_proj", "v_proj")
    assert first.metrics == second.metrics
    assert first.directory == shell.folder / "one"


def test_train_tells_where_the_adapter_is(shell: Shell, place: Place) -> None:
    ran = shell("train", *place.options, *TRAINING, "--out", "run")
    assert ran.code == 0, ran.err
    assert "Adapter: run/adapter" in ran.out
    assert "test nll:" in ran.out


def test_a_training_that_diverges_is_one_sentence_and_nothing_written(shell: Shell, place: Place) -> None:
    ran = shell("train", *place.options, "--epochs", "3", "--learning-rate", "1e20", "--out", "run", "--json")
    assert ran.code == 4
    assert ran.out == ""
    assert "--learning-rate (it was 1e+20)" in ran.error
    assert shell.written == []


def test_an_adapter_that_does_not_help_is_called_so(shell: Shell, place: Place) -> None:
    """A learning rate at which the loss stays finite, but nothing is learnt."""
    ran = shell("train", *place.options, "--learning-rate", "1e3", "--out", "run", "--json")
    assert ran.code == 0, ran.err
    metrics = ran.document["metrics"]
    assert metrics["test"]["nll"] >= metrics["base_model_test"]["nll"]
    assert "no better than the base model" in " ".join(ran.err.split())
    good = shell("train", *place.options, *TRAINING, "--out", "good")
    assert "no better" not in good.err


@pytest.mark.parametrize("command", ["plan", "recommend", "train"])
@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (("--data", "nowhere.jsonl"), "nowhere.jsonl"),
        (("--model", "./nowhere"), "nowhere"),
        (("--max-length", "4"), "4"),
        (("--seed", "-1"), "--seed"),
        (("--validation-rows", "0"), "--validation-rows"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_written(
    command: str, bad: tuple[str, ...], says: str, shell: Shell, place: Place
) -> None:
    ran = shell(command, *place.options, *bad)
    assert ran.code == 2
    assert ran.out == ""
    assert says in ran.error
    assert shell.written == []


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (("--rank", "0"), "--rank"),
        (("--rank", "17"), "at most 16"),
        (("--learning-rate", "nan"), "--learning-rate"),
        (("--lora-dropout", "1"), "--lora-dropout"),
        (("--patience", "0"), "--patience"),
        (("--target-modules", "query"), "query"),
    ],
)
def test_a_bad_hyper_parameter_is_one_sentence_and_nothing_written(
    bad: tuple[str, ...], says: str, shell: Shell, place: Place
) -> None:
    ran = shell("train", *place.options, *bad)
    assert ran.code == 2
    assert says in ran.error
    assert shell.written == []


def test_doctor(shell: Shell) -> None:
    told = shell("doctor", "--json").document
    assert told["packages"]["torch"] == version("torch")
    assert told["loratune"] == loratune.__version__
    assert told["devices"][0]["name"] == "cpu"
    assert told["devices"][0]["memory_bytes"] > 2**20
    assert "PyTorch" in told["engine_path"]
    assert set(told) == set(loratune.doctor())
    words = shell("doctor")
    assert words.code == 0
    assert "torch " in words.out
    assert "engine_path" in words.out


def test_selfcheck_holds(shell: Shell, place: Place) -> None:
    ran = shell("selfcheck", "--model", place.model, "--device", "cpu", "--steps", "4", "--json")
    assert ran.code == 0, ran.err
    told = ran.document
    assert told["holds"] is True
    assert told["steps"] == 4
    assert len(told["trials"]) >= 6
    assert len({each["trial"]["hyper_parameters"]["r"] for each in told["trials"]}) > 1
    assert all(each["pack"]["loss"] < 1e-3 for each in told["trials"])
    assert shell.written == []


def test_selfcheck_in_words(shell: Shell, place: Place) -> None:
    ran = shell("selfcheck", "--model", place.model, "--device", "cpu", "--steps", "2")
    assert ran.code == 0, ran.err
    assert "The rule holds" in ran.out
    assert ran.out.count("✓") >= 6


@pytest.mark.parametrize(
    ("bad", "says"),
    [(("--dtype", "int8"), "--dtype"), (("--steps", "0"), "--steps"), (("--device", "tpu"), "--device")],
)
def test_selfcheck_refuses(bad: tuple[str, ...], says: str, shell: Shell, place: Place) -> None:
    ran = shell("selfcheck", "--model", place.model, *bad)
    assert ran.code == 2
    assert says in ran.error


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_report_of_no_run(name: str, shell: Shell) -> None:
    folder = shell.folder / name
    if name == "empty":
        folder.mkdir()
    before = shell.written
    ran = shell("report", folder)
    assert ran.code == 2
    assert name in ran.error
    assert shell.written == before


def test_report_of_a_run(shell: Shell, place: Place) -> None:
    run = shell.folder / "run"
    result = loratune.tune(**place.keywords, ranks=[2], epochs=1, budget="6x", strategy="random", out=run)
    (run / "report.html").unlink()
    ran = shell("report", run)
    assert ran.code == 0, ran.err
    assert (run / "report.html").stat().st_size > 10_000
    assert f"Recommended: r {result.recommended.r}, " in ran.out
