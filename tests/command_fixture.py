"""A tiny model with data, and `loratune …` called in this process; `pytest_plugins` brings the fixtures."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from loratune.cli.main import main
from tiny import animal_rows, save_tiny_model, write_jsonl


@dataclass(frozen=True)
class Place:
    model: Path
    data: Path

    @property
    def options(self) -> tuple[str, ...]:
        return ("--model", str(self.model), "--data", str(self.data), "--dtype", "float32", "--device", "cpu")

    @property
    def keywords(self) -> dict[str, Any]:
        return {"model": self.model, "data": self.data, "dtype": "float32", "device": "cpu"}


@dataclass(frozen=True)
class Ran:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on stdout; anything beside it makes this fail."""
        values: dict[str, Any] = json.loads(self.out)
        return values

    @property
    def error(self) -> str:
        """The one sentence of a refusal."""
        assert "Traceback" not in self.err
        (line,) = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return line


class Shell:
    """`loratune …` in this process, in an empty folder of its own."""

    def __init__(self, patch: pytest.MonkeyPatch, captured: pytest.CaptureFixture[str], folder: Path) -> None:
        self.folder = folder
        self._patch, self._captured = patch, captured
        patch.chdir(folder)

    def __call__(self, *arguments: str | Path) -> Ran:
        self._patch.setattr(sys, "argv", ["loratune", *map(str, arguments)])
        self._captured.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        printed = self._captured.readouterr()
        return Ran(int(stop.value.code or 0), printed.out, printed.err)

    @property
    def written(self) -> list[Path]:
        return list(self.folder.rglob("*"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("place")
    return Place(save_tiny_model(folder / "model"), write_jsonl(folder / "train.jsonl", animal_rows(120)))


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Shell:
    folder = tmp_path / "here"
    folder.mkdir()
    return Shell(monkeypatch, capsys, folder)
