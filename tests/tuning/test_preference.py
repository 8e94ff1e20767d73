"""`--task preference` end to end on a tiny model: plan, search, report, adapter, resumption, and what is refused."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loratune
from command_fixture import Ran, Shell
from loratune.costs import measuring
from loratune.engine.pack import PackEngine
from loratune.errors import InputError
from loratune.tuning.configuration import named_metric
from loratune.tuning.options import TuneOptions, keyword_options
from tiny import save_tiny_model, write_jsonl

pytest_plugins = ["command_fixture"]


@pytest.fixture(scope="module", autouse=True)
def _short_calibration() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setattr(measuring, "SECONDS", 0.1)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and pairs in which one of two sounds is always preferred."""
    folder = tmp_path_factory.mktemp("pairs")
    save_tiny_model(folder / "model")
    rows: list[dict[str, object]] = [
        {"prompt": f"{i:x} says ", "chosen": "moo" + "o" * (i % 3), "rejected": "woof"} for i in range(60)
    ]
    write_jsonl(folder / "pairs.jsonl", rows)
    return folder


def run(shell: Shell, place: Path, command: str, *options: str) -> Ran:
    given = ("--model", str(place / "model"), "--data", str(place / "pairs.jsonl"))
    return shell(command, *given, "--dtype", "float32", "--device", "cpu", "--task", "preference", *options)


SMALL = (
    "--ranks",
    "2",
    "--budget",
    "30x",
    "--epochs",
    "1",
    "--learning-rates",
    "3e-3,1e-2",
    "--batch-sizes",
    "8",
)


def test_a_search_over_rates_and_betas(place: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    computed = PackEngine.reference_likelihoods
    monkeypatch.setattr(
        PackEngine,
        "reference_likelihoods",
        lambda self, table: read.append(len(table)) or computed(self, table),
    )
    monkeypatch.setenv("LORATUNE_REFERENCES", str(shell.folder / "references"))
    done = run(shell, place, "tune", *SMALL, "--out", "run", "--json")
    assert done.code == 0, done.err
    assert len(read) == 3, "the base model reads each split once, for all trials"
    result = json.loads((shell.folder / "run" / "result.json").read_text(encoding="utf-8"))
    scores = result["metrics"]["test"]
    assert scores["preference_accuracy"] == 1.0
    assert scores["preference_margin"] > 0
    assert not {"exact_match", "perplexity", "accuracy"} & set(scores)
    base = result["metrics"]["base_model"]["test"]
    assert (base["preference_accuracy"], base["preference_margin"]) == (0.5, 0.0)
    assert base["nll"] == pytest.approx(np.log(2))
    assert result["recommended"]["beta"] > 0
    assert "beta" in [stage["name"] for stage in result["stages"]]
    report = (shell.folder / "run" / "report.html").read_text(encoding="utf-8")
    assert "preference accuracy" in report
    again = run(
        shell, place, "train", "--rank", "2", "--beta", "0.2", "--learning-rate", "1e-2", "--out", "one"
    )
    assert again.code == 0, again.err
    assert len(read) == 3, "kept for the next command"
    resumed = shell("tune", "run", "--resume")
    assert resumed.code == 0, resumed.err


def test_the_plan_has_the_reference_and_the_betas(place: Path, shell: Shell) -> None:
    planned = run(shell, place, "plan", *SMALL, "--betas", "0.05,0.1", "--json")
    assert planned.code == 0, planned.err
    stages = {stage["name"]: stage for stage in planned.document["stages"]}
    assert stages["beta"]["trials"] >= 1, "the other beta, where there is one at the next learning rate too"
    assert planned.document["reference_seconds"] > 0


REFUSED: dict[str, tuple[dict[str, object] | None, tuple[str, ...], str]] = {
    "equal": (
        {"prompt": "a", "chosen": "b", "rejected": "b"},
        (),
        "pairs.jsonl:3: 'chosen' and 'rejected' must differ",
    ),
    "missing": ({"prompt": "a", "chosen": "b"}, (), "pairs.jsonl:3 has no column 'rejected'"),
    "metric": (
        None,
        ("--metric", "exact_match"),
        "--metric must be one of preference_accuracy, preference_margin",
    ),
    "loss": (
        None,
        ("--metric", "nll"),
        "with --task preference, got 'nll', a loss that compares at one beta only",
    ),
    "objective": (None, ("--objective", "ppo"), "--objective must be one of dpo, orpo, simpo, got 'ppo'"),
    "strategy": (
        None,
        ("--strategy", "grid"),
        "--task preference is searched by --strategy evidence, got 'grid'",
    ),
    "beta": (None, ("--betas", "0"), "beta must be above 0"),
    "layers": (None, ("--layer-ranks",), "--layer-ranks rests on a truncation curve"),
}


def test_a_named_loss_is_refused_from_python_too(place: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": place / "model", "data": place / "pairs.jsonl", "task": "preference"}
    with pytest.raises(InputError, match="got 'nll', a loss that compares at one beta only; leave it out"):
        loratune.tune(**options, metric="nll", out=tmp_path / "run")
    assert not list(tmp_path.iterdir())
    assert TuneOptions(**keyword_options(options)).optimised == "preference_accuracy"


def test_a_file_of_an_earlier_version_names_the_default(tmp_path: Path) -> None:
    """It held `metric = "nll"` whatever the task; named by the user it is refused."""
    kept = {"model": "m", "data": "d", "task": "preference", "metric": "nll"}
    assert "metric" not in named_metric(kept, {})
    assert named_metric(kept, {"metric": "nll"}) == kept
    assert named_metric({**kept, "task": "causal"}, {})["metric"] == "nll"


@pytest.mark.parametrize("case", REFUSED)
def test_one_sentence_and_nothing_written(case: str, place: Path, shell: Shell) -> None:
    row, options, says = REFUSED[case]
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 2
    data = write_jsonl(shell.folder / "pairs.jsonl", [*rows, *([row] if row else [])])
    before = set(shell.folder.rglob("*"))
    refused = shell(
        "tune", "--model", place / "model", "--data", data, "--task", "preference", "--out", "run", *options
    )
    assert refused.code == 2
    assert says in refused.error
    assert set(shell.folder.rglob("*")) == before


@pytest.mark.parametrize(
    "option", [("--objective", "dpo"), ("--betas", "0.1"), ("--metric", "preference_margin")]
)
def test_what_belongs_to_pairs_is_refused_without_them(option: Any, place: Path, shell: Shell) -> None:
    refused = shell("tune", "--model", place / "model", "--data", place / "pairs.jsonl", *option)
    assert refused.code == 2
    assert "preference" in refused.error


@pytest.mark.parametrize("objective", ["orpo", "simpo"])
def test_objectives_without_a_reference(objective: str, place: Path, shell: Shell) -> None:
    done = run(
        shell, place, "train", "--objective", objective, "--rank", "2", "--learning-rate", "1e-2", "--out", "one",
        "--epochs", "3",
    )  # fmt: skip
    assert done.code == 0, done.err
    result = json.loads((shell.folder / "one" / "result.json").read_text(encoding="utf-8"))
    assert result["metrics"]["test"]["preference_accuracy"] == 1.0
    exported = shell("export", "one", "--to", "trl")
    if objective == "orpo":
        assert exported.code == 2
        assert "trl adds the likelihood of the prompt to ORPO's loss" in exported.error
        return
    assert exported.code == 0, exported.err
    script = (shell.folder / "one" / "export" / "trl" / "train.py").read_text(encoding="utf-8")
    compile(script, "train.py", "exec")
    for piece in ("CPOTrainer(", "loss_type='simpo'", "cpo_alpha=0.0", "simpo_gamma=1.0", "beta=2.0"):
        assert piece in script
    line = (
        (shell.folder / "one" / "export" / "trl" / "data" / "train.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()[0]
    )
    row = json.loads(line)
    assert set(row) == {"prompt", "chosen", "rejected"}
    assert row["prompt"].endswith(" says ")
    assert (row["chosen"][:3], row["rejected"][:4]) == ("moo", "woof")
    refused = shell("export", "one", "--to", "axolotl", "--out", "other")
    assert refused.code == 2
    assert "axolotl is written for completions here, and this run learnt preferences (simpo)" in refused.error
    assert not (shell.folder / "other").exists()
