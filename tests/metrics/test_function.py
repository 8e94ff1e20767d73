"""A user's function as a metric: how it is found, read and refused."""

import sys
from pathlib import Path

import numpy as np
import pytest

import own_metrics
from loratune.errors import InputError
from loratune.maths.noninferiority import SeedNoise
from loratune.metrics import FunctionMetric, Outputs, Rows, as_metric, find, info_of, metric, named, register
from loratune.metrics.function import load
from loratune.values import Trial, TrialResult, default_recipe

NO_SEEDS = SeedNoise(variance=0.0, degrees=np.inf)


def outputs(texts: list[str], references: list[str]) -> Outputs:
    rows = len(texts)
    return Outputs(
        nll=np.ones(rows),
        exact_match=np.zeros(rows, np.bool_),
        rows=Rows(weights=np.ones(rows)),
        texts=texts,
        references=references,
    )


def test_a_plain_function_is_in_points_and_larger_is_better() -> None:
    found = load("own_metrics:overlap")
    assert (found.info.unit, found.info.larger_is_better, found.info.margin) == ("points", True, 1.0)
    assert (found.name, found.info.title) == ("own_metrics:overlap", "overlap")
    scores = found.scores(outputs(["abcd", "xx"], ["abcx", "yy"]))
    assert scores is not None
    assert scores.tolist() == [0.75, 0.0]
    assert found.value(scores, Rows()) == 0.375
    assert found.info.text(0.375) == "37.5 %"


def test_a_function_may_say_how_it_is_read() -> None:
    found = load("own_metrics:wrong_characters")
    assert isinstance(found, FunctionMetric)
    assert (found.info.unit, found.info.larger_is_better, found.info.margin) == ("characters", False, 0.1)
    assert found.info.title == "wrong characters"
    assert found(["ab"], ["ax"]) == [1.0]
    assert found.info.text(12.34567) == "12.35"


def test_without_texts_it_is_not_measured() -> None:
    blank = Outputs(nll=np.ones(2), exact_match=np.zeros(2, np.bool_), rows=Rows())
    assert load("own_metrics:overlap").scores(blank) is None


def test_fewer_wrong_characters_are_a_smaller_loss() -> None:
    """Two rows each: 1 and 3 wrong against 2 and 6: 2 better on average; differences 1 and 3."""
    found = load("own_metrics:wrong_characters")
    better, worse = np.array([[1.0, 3.0]]), np.array([[2.0, 6.0]])
    comparison = found.compare(better, worse, Rows(), NO_SEEDS, 0.1)
    assert comparison.difference == -2.0
    assert comparison.standard_error == pytest.approx(1.0)
    assert find_loss(found, 2.0) < find_loss(found, 4.0)


def find_loss(metric_: FunctionMetric, value: float) -> float:
    trial = Trial(hyper_parameters=default_recipe())
    return metric_.loss(TrialResult(asked=trial, trial=trial, nll=1.0, metrics={metric_.name: value}))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("raises", "KeyError: 'no such\\nrow'"),
        ("one_number", "gave shape () for 3 rows; return a list of 3 numbers"),
        ("too_few", "gave 2 scores for 3 rows; return a list of 3 numbers"),
        ("not_numbers", "ValueError"),
        ("nan_for_one", "gave nan for the prediction c of z"),
        ("per_cent", "from 0 to 1 (its unit is points), but gave 73"),
    ],
)
def test_what_a_function_does_wrong_is_one_sentence(name: str, words: str) -> None:
    found = load(f"own_metrics:{name}")
    with pytest.raises(InputError) as error:
        found.scores(outputs(["a", "b", "c"], ["x", "y", "z"]))
    assert words in str(error.value)
    assert f"--metric own_metrics:{name} must" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_package_here:score", "importing no_such_package_here failed with ModuleNotFoundError"),
        ("own_metrics:score", "it has no 'score'"),
        ("own_metrics:number", "must be a function of predictions and references, got 3"),
        ("own_metrics:Sequence", "must be a function"),
        ("blue", "must be one of nll, perplexity, exact_match, accuracy, f1"),
        ("own_metrics", "must be one of nll"),
        ("../own_metrics:overlap", "must be one of nll"),
        ("own_metrics:overlap()", "must be one of nll"),
    ],
)
def test_a_name_that_cannot_be_used(name: str, words: str) -> None:
    with pytest.raises(InputError) as error:
        named(name)
    assert words in str(error.value)


def test_a_module_that_ends_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leaving_at_once.py").write_text("raise SystemExit(7)\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="SystemExit: 7"):
        load("leaving_at_once:score")


def test_modules_of_the_current_folder_are_found_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that bears an installed module's name does not take its place; the path is left as it was."""
    (tmp_path / "only_here_metric.py").write_text("def score(predictions, references):\n    return [1.0]\n")
    (tmp_path / "own_metrics.py").write_text("raise RuntimeError('the wrong one')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_metrics")
    before = list(sys.path)
    assert load("only_here_metric:score").info.title == "score"
    assert load("own_metrics:overlap").info.title == "overlap"
    assert sys.path == before


def test_nothing_is_imported_by_looking_a_name_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a stored run does, whose report must not run code that the run names."""
    (tmp_path / "must_not_run.py").write_text("raise RuntimeError('it ran')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    info = info_of("must_not_run:some_score")
    assert info.title == "some score"
    with pytest.raises(InputError, match="must be one of"):
        find("must_not_run:some_score")
    assert "must_not_run" not in sys.modules


def test_a_callable_from_python_gets_its_own_name() -> None:
    found = register(as_metric(own_metrics.overlap))
    assert found.name == "own_metrics:overlap"
    assert find("own_metrics:overlap") is found
    assert as_metric(own_metrics.wrong_characters) is own_metrics.wrong_characters


def test_a_built_in_name_is_not_to_be_had() -> None:
    own = as_metric(own_metrics.overlap, "nll")
    with pytest.raises(InputError, match="must not be named 'nll'"):
        register(own)


def test_a_unit_of_its_own_must_have_a_margin() -> None:
    with pytest.raises(InputError, match="must have a margin above 0, got None words; give"):
        metric(own_metrics.overlap, unit="words")
    with pytest.raises(InputError, match="got 0"):
        metric(own_metrics.overlap, margin=0)
    with pytest.raises(InputError, match="unit of own_metrics:overlap"):
        metric(own_metrics.overlap, unit="nats", margin=1)


def test_a_large_perplexity_has_no_fraction() -> None:
    text = find("perplexity").info.text
    assert (text(1.91254), text(395392.3139)) == ("1.9125", "395,392")
