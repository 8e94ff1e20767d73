"""What a command line loads before it knows its command: nothing that takes a second."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from loratune.cli.main import entry
from loratune.metrics import BUILT_IN
from loratune.metrics.names import BUILT_IN_NAMES
from loratune.search.make import STRATEGIES
from loratune.search.names import STRATEGY_NAMES

HEAVY = ("torch", "transformers", "peft", "optuna", "datasets", "numpy", "scipy", "pydantic", "sqlalchemy")


def write_rows(path: Path) -> Path:
    path.write_text('{"text": "a", "label": "b"}\n{"text": "c", "label": "d"}\n', encoding="utf-8")
    return path


def loaded(statement: str) -> set[str]:
    """Of `HEAVY`, what is in memory after a statement."""
    script = f"import sys; {statement}; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(HEAVY) & set(ran.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import loratune.cli.commands",
        "from loratune.tuning.options import TuneOptions as T; T(model='m', data='d')",
    ],
)
def test_the_options_are_known_before_anything_heavy_is_loaded(statement: str) -> None:
    assert loaded(statement) == set()


def test_listing_loads_nothing() -> None:
    assert loaded("import loratune; dir(loratune)") == set()


def test_init_without_a_model_loads_no_torch(tmp_path: Path) -> None:
    rows, out = write_rows(tmp_path / "rows.jsonl"), tmp_path / "start.toml"
    statement = f"from loratune.app.init import *; init_command(data={str(rows)!r}, model=None, out=Path({str(out)!r}))"
    assert not loaded(statement) & {"torch", "transformers", "peft", "optuna"}
    assert out.exists()


def test_the_names_are_those_of_the_things() -> None:
    assert tuple(BUILT_IN) == BUILT_IN_NAMES
    assert tuple(STRATEGIES) == STRATEGY_NAMES


@pytest.mark.parametrize(("arguments", "code"), [(["--version"], 0), (["tune", "--model", "m"], 2)])
def test_a_process_that_used_a_gpu_ends_at_once(
    arguments: list[str], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the code that it would have had, and nothing left unsaid; others end as every process does."""
    monkeypatch.setattr(sys, "argv", ["loratune", *arguments])
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with pytest.raises(SystemExit) as usual:
        entry()
    assert (usual.value.code, ended) == (code, [])
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    entry()
    assert ended == [code]
    assert capsys.readouterr().out.count("loratune") == (2 if code == 0 else 0)
