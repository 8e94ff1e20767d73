"""Bad input through the command line: one clear sentence, exit code 2, nothing written."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from loratune.cli.main import main
from tiny import animal_rows, save_tiny_model, write_jsonl


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "good.jsonl", animal_rows(60))


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["loratune", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def refused(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    out: Path,
    *arguments: str | Path,
    says: tuple[str, ...],
) -> None:
    """Exit code 2, one sentence that holds every word of `says`, no traceback, no run directory."""
    code = run(monkeypatch, *arguments, "--out", out)
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert code == 2, printed.err
    assert len(errors) == 1, printed.err
    assert "Traceback" not in printed.err
    for word in says:
        assert word in errors[0], errors[0]
    assert not out.exists()


def write(text: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(text, encoding="utf-8") and None


GOOD = [json.dumps(row) for row in animal_rows(40)]
BAD_DATA = {
    "empty file": ("", ("bad.jsonl", "empty")),
    "broken line": ("\n".join([*GOOD[:7], '{"text": "moo', *GOOD[7:]]), ("bad.jsonl:8",)),
    "not an object": ("\n".join([*GOOD[:3], "[1, 2]"]), ("bad.jsonl:4",)),
    "missing column": ("\n".join([*GOOD[:4], '{"text": "moo"}']), ("bad.jsonl:5", "label")),
    "unknown columns": ('{"body": "a", "kind": "b"}\n' * 20, ("body", "kind")),
    "completion not text": ('{"prompt": "a", "completion": 3.5}\n' * 20, ("bad.jsonl:1", "completion")),
    "empty completion": ('{"prompt": "a", "completion": " "}\n' * 20, ("bad.jsonl:1", "completion")),
    "one class": ('{"text": "a", "label": "x"}\n' * 40, ("x",)),
    "too few rows": ("\n".join(GOOD[:2]), ("rows",)),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data(
    case: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text, says = BAD_DATA[case]
    path = tmp_path / "bad.jsonl"
    path.write_text(text, encoding="utf-8")
    refused(monkeypatch, capsys, tmp_path / "out", "tune", "--model", model, "--data", path, says=says)


def test_missing_data(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "nowhere.jsonl"
    refused(
        monkeypatch,
        capsys,
        tmp_path / "out",
        "tune",
        "--model",
        model,
        "--data",
        path,
        says=("nowhere.jsonl",),
    )


BAD_OPTIONS = {
    "all rows too long": (("--max-length", "4"), ("4",)),
    "rank zero": (("--ranks", "0,8"), ("rank", "0")),
    "rank not a number": (("--ranks", "eight"), ("eight",)),
    "rank too large": (("--ranks", "8,4096"), ("4096",)),
    "target matches nothing": (("--target-modules", "query"), ("query", "q_proj")),
    "budget not understood": (("--budget", "soon"), ("soon", "30m")),
    "budget too small": (("--budget", "0.01x"), ("budget",)),
    "metric unknown": (("--metric", "bleurt"), ("bleurt", "exact_match")),
    "strategy unknown": (("--strategy", "magic"), ("magic", "evidence")),
    "template names no column": (("--template", "{body}:"), ("body", "text")),
    "negative margin": (("--margin", "-1"), ("margin",)),
    "unknown dtype": (("--dtype", "int8"), ("int8",)),
    "unknown device": (("--device", "tpu"), ("tpu",)),
    "unreadable memory": (("--device-memory", "lots"), ("lots",)),
    "memory without its unit": (("--device-memory", "24"), ("24", "unit")),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options(
    case: str,
    model: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments, says = BAD_OPTIONS[case]
    refused(
        monkeypatch, capsys, tmp_path / "out", "tune", "--model", model, "--data", data, *arguments, says=says
    )


def without(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for path in folder.glob(name):
            path.unlink()

    return change


def pickled(folder: Path) -> None:
    without("*.safetensors")(folder)
    torch.save({}, folder / "pytorch_model.bin")


def encoder(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["BertModel"], "model_type": "bert"}
    (folder / "config.json").write_text(json.dumps(config))


BAD_MODELS = {
    "no config": (without("config.json"), ("config.json",)),
    "no weights": (without("*.safetensors"), ("safetensors",)),
    "pickle only": (pickled, ("safetensors", "pytorch_model.bin")),
    "not causal": (encoder, ("causal", "BertModel")),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_bad_model(
    case: str,
    model: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change, says = BAD_MODELS[case]
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    change(broken)
    refused(monkeypatch, capsys, tmp_path / "out", "tune", "--model", broken, "--data", data, says=says)


def test_missing_model(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(
        monkeypatch,
        capsys,
        tmp_path / "out",
        "tune",
        "--model",
        "./nowhere",
        "--data",
        data,
        says=("nowhere",),
    )


def test_out_holds_something_else(
    model: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "taken"
    out.mkdir()
    (out / "study.db").write_bytes(b"another study")
    before = sorted(out.iterdir())
    code = run(monkeypatch, "tune", "--model", model, "--data", data, "--out", out)
    assert code == 2
    assert "--resume" in capsys.readouterr().err
    assert sorted(out.iterdir()) == before


def test_missing_model_option(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "tune", "--data", data) == 2
    assert "--model" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", ["tune", "plan", "recommend", "train", "memory", "report", "selfcheck", "doctor", "demo"]
)
def test_help_teaches(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, command, "--help") == 0
    assert len(capsys.readouterr().out.splitlines()) > 8
