"""A user's metric through the whole job: search, final run, evidence, report, terminal and JSON."""

import inspect
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch

import loratune
import own_metrics
from command_fixture import Place, Shell
from loratune.costs import measuring
from loratune.errors import InputError, OutputError
from loratune.metrics import find, registry
from loratune.reporting.facts import from_stored
from loratune.reporting.result import TuneResult
from loratune.runners.engines import LocalEngines
from loratune.study.record import Study
from loratune.tuning.options import TuneOptions, keyword_options
from loratune.tuning.workbench import open_workbench
from tiny import save_tiny_model, write_jsonl

pytest_plugins = ["command_fixture"]

NAME = "own_metrics:wrong_characters"
WISHES: dict[str, Any] = {
    "ranks": [2, 4],
    "budget": "8x",
    "dtype": "float32",
    "epochs": 4.0,
    "device": "cpu",
    "learning_rates": [1e-3, 1e-2, 3e-2],
    "batch_sizes": [8],
    "strategy": "grid",
    "metric": own_metrics.wrong_characters,
    "no_ledger": True,
}


@pytest.fixture(scope="module", autouse=True)
def _short_calibration() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setattr(measuring, "SECONDS", 0.1)
    yield
    patch.undo()


def sounds(count: int) -> list[dict[str, object]]:
    """Rows without labels, whose completion repeats the beginning of the prompt."""
    words = ("meow", "woof", "moo")
    return [
        {"prompt": f"{words[i % 3]} {i:x} says: ", "completion": f"{words[i % 3]} {i:x}"}
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A tiny model and rows without labels."""
    folder = tmp_path_factory.mktemp("free")
    return Place(save_tiny_model(folder / "model"), write_jsonl(folder / "train.jsonl", sounds(120)))


@pytest.fixture(scope="module")
def done(free: Place, tmp_path_factory: pytest.TempPathFactory) -> TuneResult:
    out = tmp_path_factory.mktemp("done") / "run"
    return loratune.tune(model=free.model, data=free.data, out=out, **WISHES)


def test_a_function_that_was_edited_does_not_resume(
    done: TuneResult, free: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(done.directory, copy)
    (copy / "result.json").unlink()
    monkeypatch.setattr(inspect, "getsource", lambda subject: f"# edited\n{subject}")
    with pytest.raises(OutputError, match=r"metric_digest was '\w{16}' and is now '\w{16}'"):
        loratune.tune(model=free.model, data=free.data, out=copy, resume=True, **WISHES)


def options(place: Place, **changes: Any) -> TuneOptions:
    keywords = {name: str(value) for name, value in place.keywords.items()}
    return TuneOptions(**{**keywords, "metric": NAME, **changes})


def test_the_adapter_is_better_by_it_and_the_json_says_so(done: TuneResult) -> None:
    ours, base = done.metrics["test"][NAME], done.metrics["base_model"]["test"][NAME]
    assert ours < base - 1, "fewer wrong characters than the base model"
    assert done.metrics["validation"][NAME] < done.metrics["base_model"]["validation"][NAME]
    (claim,) = [
        each for each in done.evidence if "wrong characters is lower than the base model's" in each.claim
    ]
    assert claim.unit == "characters"
    assert claim.value == pytest.approx(base - ours)
    assert claim.holds
    assert claim.interval is not None
    assert 0 < claim.interval[0] <= claim.value <= claim.interval[1]


def test_the_report_shows_what_is_written(done: TuneResult) -> None:
    """Rows without labels: greedy text is the completion exactly where each of its tokens is the likeliest."""
    shown = Study.load(done.directory).get_fact("facts")["held_out"]["examples"]
    assert len(shown) == 10
    for each in shown:
        for model in ("recommended", "base"):
            assert each[model]["right"] == (each[model]["text"] == each["expected"])
    assert any(each["recommended"]["text"] for each in shown)
    assert "what each model writes there by itself" in (done.directory / "report.html").read_text()


def test_the_search_prefers_fewer_wrong_characters(done: TuneResult) -> None:
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{done.directory / 'study.db'}")
    assert study.direction is optuna.study.StudyDirection.MINIMIZE
    metric = find(NAME)
    results = [r for r in Study.load(done.directory).results() if r.asked.stage != "final" and r.finished]
    best = min(metric.loss(result) for result in results)
    chosen = [r for r in results if r.trial.hyper_parameters.r == done.recommended.r]
    assert min(metric.loss(result) for result in chosen) == best
    for result in results:
        assert result.example_scores[NAME].mean() == pytest.approx(result.metrics[NAME])


def test_the_reported_value_is_what_the_function_gives(free: Place) -> None:
    """The base model's most likely tokens, decoded by hand from plain logits."""
    with open_workbench(options(free), targets=("q_proj",), ranks=(), epochs=1.0, metric=NAME) as bench:
        assert not bench.data.labels
        assert isinstance(bench.engines, LocalEngines)
        table, tokenizer, engine = bench.data.test, bench.tokenizer, bench.engines.engine
        (evaluation,) = engine.evaluate([None], table)
        values, scores = engine.scoring.measure(evaluation, table)
        by_hand = []
        for i in range(len(table)):
            tokens, learned = (torch.tensor(each.tolist()) for each in table.row(i))
            likeliest = engine.base.model(input_ids=tokens[None]).logits[0].argmax(-1)
            predicted = tokenizer.decode(likeliest[:-1][learned[1:]].tolist(), skip_special_tokens=True)
            true = tokenizer.decode(tokens[learned].tolist(), skip_special_tokens=True)
            assert re.fullmatch("(meow|woof|moo) [0-9a-f]+", true), "without the end-of-turn token"
            by_hand += own_metrics.wrong_characters([predicted.strip()], [true])
        assert scores[NAME].tolist() == by_hand
        assert values[NAME] == pytest.approx(np.mean(by_hand))


def test_labelled_rows_give_the_words_of_labels(place: Place) -> None:
    seen: list[tuple[list[str], list[str]]] = []

    def keeps(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        seen.append((list(predictions), list(references)))
        return [float(a == b) for a, b in zip(predictions, references, strict=True)]

    name = keyword_options({"metric": keeps})["metric"]
    wished = options(place, metric=name)
    with open_workbench(wished, targets=("q_proj",), ranks=(), epochs=1.0, metric=name) as bench:
        assert isinstance(bench.engines, LocalEngines)
        engine = bench.engines.engine
        assert engine.labels_at_end
        assert not engine.scoring.keeps_tokens
        (evaluation,) = engine.evaluate([None], bench.data.validation, labels=True)
        values, _ = engine.scoring.measure(evaluation, bench.data.validation)
        assert values[name] == values["accuracy"]
        assert all(set(texts) <= {"cat", "cow", "dog"} for pair in seen for texts in pair)


def test_the_report_says_it_without_the_code(done: TuneResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_OWN", {})
    monkeypatch.delattr(own_metrics, "wrong_characters")
    loratune.report(done.directory)
    page = (done.directory / "report.html").read_text(encoding="utf-8")
    assert "wrong characters" in page
    assert re.search(r"[tT]est wrong characters [\d.]+ characters lower than the base model", page)
    study = Study.load(done.directory)
    facts = from_stored(study.get_fact("facts"), study.results())
    assert facts.info(facts.shown_metric).title == "wrong characters"


def test_terminal_and_card(free: Place, shell: Shell, tmp_path: Path) -> None:
    wishes = (
        "--strategy grid --ranks 16 --learning-rates 1e-4,2e-4,4e-4,8e-4 --batch-sizes 16 --epochs 4 --budget 20x "
        "--no-ledger"
    )
    out = tmp_path / "run"
    ran = shell("tune", *free.options, *wishes.split(), "--metric", NAME, "--out", out)
    assert ran.code == 0, ran.err
    assert re.search(r"[tT]est wrong characters [\d.]+ characters lower than the base model", ran.out)
    assert "wrong characters" in (out / "adapter" / "README.md").read_text()
    metrics = json.loads((out / "result.json").read_text())["metrics"]
    assert metrics["test"][NAME] > 0
    paired = {gain["metric"]: gain for gain in metrics["fair_opponent"]["gains"]}
    theirs, ours = metrics["fair_opponent"]["validation"][NAME], metrics["validation"][NAME]
    assert paired[NAME]["value"] == pytest.approx(theirs - ours), "fewer wrong characters are a gain"

    again = shell("tune", "--config", out / "loratune.toml", "--resume")
    assert again.code == 2
    assert f"add --metric {NAME}" in again.error
    named = shell("tune", "--config", out / "loratune.toml", "--resume", "--metric", NAME)
    assert named.code == 0


@pytest.mark.parametrize("name", ["raises", "one_number", "too_few", "nan_for_one", "per_cent"])
def test_a_bad_function_is_refused_before_anything_is_written(name: str, free: Place, shell: Shell) -> None:
    ran = shell("tune", *free.options, "--metric", f"own_metrics:{name}", "--out", "run")
    assert ran.code == 2
    assert f"--metric own_metrics:{name} must" in ran.error
    assert not shell.written


@pytest.mark.parametrize(
    "name", ["no_such_package_here:score", "own_metrics:nothing", "own_metrics:number", "meteor"]
)
def test_a_name_that_is_no_metric_is_refused(name: str, free: Place, shell: Shell) -> None:
    ran = shell("plan", *free.options, "--metric", name)
    assert ran.code == 2
    assert "--metric" in ran.error
    assert not shell.written


def test_a_metric_upside_down_is_remarked_on(free: Place) -> None:
    name = "own_metrics:upside_down"
    wished = options(free, metric=name)
    with open_workbench(wished, targets=("q_proj",), ranks=(), epochs=1.0, metric=name) as bench:
        (note,) = [note for note in bench.data.notes if "upside down" in note]
        assert "larger_is_better" in note
    with open_workbench(options(free), targets=("q_proj",), ranks=(), epochs=1.0, metric=NAME) as bench:
        assert not any("references against themselves" in note for note in bench.data.notes)


def test_one_that_fails_later_is_one_sentence_too(free: Place, tmp_path: Path) -> None:
    calls = []

    def fails_late(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        calls.append(len(predictions))
        if len(calls) > 3:
            raise ZeroDivisionError("late")
        return [0.5] * len(predictions)

    with pytest.raises(InputError, match="ZeroDivisionError: late"):
        loratune.tune(
            model=free.model, data=free.data, out=tmp_path / "run", **{**WISHES, "metric": fails_late}
        )
