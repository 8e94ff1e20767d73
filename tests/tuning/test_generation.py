"""Metrics of generated text through the whole job: structured output, searched by NLL, decided by what is written."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import loratune
from command_fixture import Place, Shell
from loratune.costs import measuring
from loratune.reporting.result import TuneResult
from loratune.study.record import Study
from tiny import save_tiny_model, write_jsonl

pytest_plugins = ["command_fixture"]

WISHES: dict[str, Any] = {
    "ranks": [2, 4],
    "budget": "8x",
    "dtype": "float32",
    "epochs": 4.0,
    "device": "cpu",
    "learning_rates": [1e-3, 1e-2, 3e-2],
    "batch_sizes": [8],
    "strategy": "grid",
    "metric": "json_match",
    "no_ledger": True,
}


@pytest.fixture(scope="module", autouse=True)
def _short_calibration() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setattr(measuring, "SECONDS", 0.1)
    yield
    patch.undo()


def answers(count: int) -> list[dict[str, object]]:
    """A word to an object of two fields, written in two ways that are the same JSON."""
    words = ("meow", "woof", "moo")
    forms = ('{{"n": {0}}}', '{{"n":{0}}}')
    return [
        {"prompt": f"{words[i % 3]} {i:x}: ", "completion": forms[i % 2].format(i % 3)} for i in range(count)
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("json")
    return Place(save_tiny_model(folder / "model"), write_jsonl(folder / "train.jsonl", answers(150)))


@pytest.fixture(scope="module")
def done(place: Place, tmp_path_factory: pytest.TempPathFactory) -> TuneResult:
    out = tmp_path_factory.mktemp("done") / "run"
    return loratune.tune(model=place.model, data=place.data, out=out, **WISHES)


def test_structured_output_is_scored_by_its_value(done: TuneResult) -> None:
    """Half of the completions are written in one way, half in the other: no model can know which."""
    ours, base = done.metrics["test"], done.metrics["base_model"]["test"]
    assert ours["json_match"] > 0.9
    assert base["json_match"] == 0
    assert 0.2 < ours["generated_match"] < 0.8
    assert ours["generated_match"] == ours["exact_match"], "greedy text of the same length, token for token"
    assert done.metrics["validation"]["json_match"] > 0.9
    (claim,) = [
        each
        for each in done.evidence
        if "JSON equality of the generated text is higher than the base" in each.claim
    ]
    assert claim.holds
    assert claim.value == pytest.approx(100 * ours["json_match"])


def test_the_report_shows_what_is_written(done: TuneResult) -> None:
    shown = Study.load(done.directory).get_fact("facts")["held_out"]["examples"]
    assert len(shown) == 10
    alike = [json.loads(each["recommended"]["text"]) == json.loads(each["expected"]) for each in shown]
    assert sum(alike) >= 8
    assert not any(each["base"]["text"] == each["expected"] for each in shown)


def test_trials_are_searched_by_nll_and_finalists_write(done: TuneResult) -> None:
    study = Study.load(done.directory)
    trials = [each for each in study.results() if each.asked.stage != "final"]
    assert not any("json_match" in each.metrics for each in trials)
    document = json.loads((done.directory / "result.json").read_text())
    (stage,) = [each for each in document["stages"] if each["name"] == "finalists"]
    shown = stage["details"]["finalists"]
    assert len(shown) == 4
    assert [each["nll"] for each in shown[1:]] == sorted(each.nll for each in trials)[1:4]
    assert shown[0]["nll"] == min(each.nll for each in trials)
    assert shown[0]["json_match"] > 0.9
    (claim,) = [each for each in done.evidence if "as good with the choice by NLL" in each.claim]
    assert claim.unit == "points"
    assert not (done.directory / "finalists").exists()


def test_report_terminal_and_card_name_it(done: TuneResult) -> None:
    page = (done.directory / "report.html").read_text(encoding="utf-8")
    assert "JSON equality of the generated text" in page
    assert "JSON equality of the generated text" in (done.directory / "adapter" / "README.md").read_text()


def test_the_plan_prices_it(place: Place, shell: Shell) -> None:
    wishes = (
        "--metric json_match --max-new-tokens 9 --ranks 2 --learning-rates 1e-2 --strategy grid --no-ledger"
    )
    ran = shell("plan", *place.options, *wishes.split(), "--budget", "3x", "--json")
    assert ran.code == 0, ran.err
    document = json.loads(ran.out)
    written = document["generation"]
    assert written["max_new_tokens"] == 9
    assert (written["validation_rows"], written["test_rows"]) == (23, 23)
    assert 0 < written["seconds"] < document["predicted_seconds"]["final"]


BAD = [
    (["--metric", "regex:#### .*"], "a group in parentheses"),
    (["--metric", "regex:#### ("], "must hold a regular expression"),
    (["--metric", r"regex:#### (\S+)"], "must match the completions, but none of 46 has a match"),
    (["--metric", "generated:own_metrics:raises"], "must return a finite score for each row, but failed on"),
    (["--metric", "generated:own_metrics:leaves"], "failed on 23 rows with SystemExit: 7"),
    (["--metric", "generated:own_metrics:one_number"], "but gave shape () for"),
    (["--metric", "generated:own_metrics:too_few"], "scores for"),
    (["--metric", "generated:own_metrics:nothing"], "must name a function of own_metrics"),
    (
        ["--metric", "chrf", "--completion-column", "completion", "--task", "classification"],
        "--task classification has a head that writes none; choose nll, accuracy or f1.",
    ),
    (["--metric", "chrf", "--max-new-tokens", "0"], "--max-new-tokens must be at least 1, got 0"),
]


@pytest.mark.parametrize(
    ("options", "words"), BAD, ids=lambda each: each[-1] if isinstance(each, list) else ""
)
def test_bad_input(options: list[str], words: str, place: Place, shell: Shell) -> None:
    ran = shell("tune", *place.options, *options, "--out", "run")
    assert ran.code == 2
    assert words in ran.error
    assert not shell.written


@pytest.mark.parametrize(("row", "named"), [(41, "held.jsonl:2"), (5, "train.jsonl:6")])
def test_completions_that_are_no_json_are_named(
    row: int, named: str, place: Place, shell: Shell, tmp_path: Path
) -> None:
    rows = answers(60)
    rows[row]["completion"] = '{"n": 1'
    train = write_jsonl(tmp_path / "train.jsonl", rows[:40])
    held = write_jsonl(tmp_path / "held.jsonl", rows[40:])
    given = ["--model", place.model, "--data", train, "--validation", held, "--metric", "json_match"]
    ran = shell("tune", *given, "--out", "run")
    assert ran.code == 2
    assert f"{named}; mend the row" in ran.error
    assert not shell.written


def test_a_limit_of_text_that_nobody_writes_is_told(place: Place, shell: Shell) -> None:
    planned = shell("plan", *place.options, "--max-new-tokens", "5", "--ranks", "2", "--no-ledger")
    assert "--max-new-tokens has no effect: no text is generated here" in " ".join(planned.out.split())


def test_rows_without_a_prompt_are_refused(place: Place, shell: Shell, tmp_path: Path) -> None:
    texts = write_jsonl(tmp_path / "texts.jsonl", [{"text": f"{i} bottles of beer"} for i in range(40)])
    ran = shell("tune", "--model", place.model, "--data", texts, "--metric", "rougeL", "--out", "run")
    assert ran.code == 2
    assert "--metric rougeL needs rows with a prompt" in ran.error
    assert not shell.written
