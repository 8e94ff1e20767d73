"""The options: types, limits, the default recipe, and what is written to loratune.toml."""

import sys
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import pytest

from loratune.cli.main import main
from loratune.errors import DataError, InputError
from loratune.tuning.configuration import read_options, to_toml
from loratune.tuning.options import (
    SearchOptions,
    TrainOptions,
    TuneOptions,
    keyword_options,
)
from loratune.values import default_recipe

MUST: dict[str, Any] = {"model": "m", "data": "d"}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a number for a list": ({"ranks": 8}, "--ranks must be a list of whole numbers, got 8"),
    "text in a list": ({"ranks": ["8"]}, "--ranks must be a list of whole numbers, got ['8']"),
    "a fraction as a rank": ({"ranks": [8.5]}, "--ranks must be a list of whole numbers, got [8.5]"),
    "text for a number": ({"epochs": "2"}, "--epochs must be a number or auto, got '2'"),
    "truth for a number": ({"epochs": True}, "--epochs must be a number or auto, got True"),
    "a fraction for a count": ({"seed": 1.5}, "--seed must be a whole number, got 1.5"),
    "a number for text": ({"budget": 3}, "--budget must be text, got 3"),
    "text for a list": (
        {"target_modules": "q_proj"},
        "--target-modules must be a list of names, got 'q_proj'",
    ),
    "text for an optional": ({"margin": "0.1"}, "--margin must be a number or unset, got '0.1'"),
    "an empty name": ({"model": ""}, "--model must be text that is not empty, got ''; give a name or a path"),
    "an empty path": (
        {"out": " "},
        "--out must be text that is not empty, got ' '; leave it out, or give runs/",
    ),
    "an empty name in a list": ({"target_modules": [""]}, "--target-modules must be text that is not empty"),
    "an empty metric": ({"metric": ""}, "--metric must be text that is not empty, got ''; leave it out"),
    "text for a switch": ({"regularise": "yes"}, "--regularise must be true or false, got 'yes'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_types(case: str) -> None:
    values, says = WRONG[case]
    with pytest.raises(InputError) as caught:
        TuneOptions(**keyword_options(MUST | values))
    assert says in str(caught.value)


def test_a_wrong_type_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "loratune.toml"
    file.write_text('model = "m"\ndata = "d"\nranks = 8\n')
    monkeypatch.setattr(
        sys, "argv", ["loratune", "tune", "--config", str(file), "--out", str(tmp_path / "o")]
    )
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "error: --ranks must be a list of whole numbers, got 8" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_whole_number_is_a_number() -> None:
    assert TuneOptions(**MUST, epochs=2, learning_rates=(1, 0.5)).epochs == 2


@pytest.mark.parametrize("name", ["max_length", "train_rows", "validation_rows", "test_rows"])
def test_limits_of_rows(name: str) -> None:
    with pytest.raises(
        DataError, match=f"{name} must be at least 2, got 1; raise --{name.replace('_', '-')}"
    ):
        TuneOptions(**MUST, **{name: 1})


def test_the_default_recipe_is_everywhere_the_same() -> None:
    assert SearchOptions(**MUST).hyper_parameters() == default_recipe()
    assert TrainOptions(**MUST).hyper_parameters() == default_recipe()


@pytest.mark.parametrize("url", ["postgresql://ann:s3cret@host/db", "postgresql://host/db?password=s3cret"])
def test_secrets_are_not_written_down(tmp_path: Path, url: str) -> None:
    text = to_toml(TuneOptions(**MUST, storage=url))
    assert "s3cret" not in text
    file = tmp_path / "loratune.toml"
    file.write_text(text)
    assert "storage" not in read_options(file)


@pytest.mark.parametrize("odd", ["{a}\n'\"ü", "🐈 \x7f\x1b\x85\u2028", "a\\b\tc"])
def test_the_file_repeats_the_options(tmp_path: Path, odd: str) -> None:
    options = TuneOptions(
        **MUST,
        ranks=(4, 8),
        learning_rates=(1e-7, 1e-4),
        margin=inf,
        storage="sqlite:///x.db",
        template=odd,
        out=odd,
    )
    file = tmp_path / "loratune.toml"
    file.write_text(to_toml(options))
    assert TuneOptions(**read_options(file)) == replace(options, metric=options.optimised)


NOT_TO_BE_READ = {
    "a number of 5,000 digits": f"seed = {'1' * 5000}",
    "deep lists": f"ranks = {'[' * 5000}",
    "no UTF-8": b"model = '\xff'",
    "cut off": "model = 'm",
    "a folder": None,
}


@pytest.mark.parametrize("case", NOT_TO_BE_READ)
def test_a_file_that_is_no_toml_is_one_sentence(tmp_path: Path, case: str) -> None:
    file, content = tmp_path / "loratune.toml", NOT_TO_BE_READ[case]
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match="--config must be a readable TOML file"):
        read_options(file)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"epochs": 10**500}, "--epochs must be a number of at most 18 digits, got one of 501;"),
        ({"ranks": (8, -(2**63) - 1)}, "--ranks must be a number of at most 18 digits, got one of 19;"),
        ({"out": "a\udcffb"}, "--out must be text in UTF-8"),
        ({"data": "a\0b"}, "--data must be text in UTF-8 without null characters"),
    ],
)
def test_what_no_file_can_hold_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        TuneOptions(**(MUST | values))


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert TuneOptions(**MUST, out="~/runs/x").directory == tmp_path / "runs" / "x"
    with pytest.raises(InputError, match="'~nobody-of-this-name/x'"):
        _ = TuneOptions(**MUST, out="~nobody-of-this-name/x").directory


def test_variants_of_every_trial() -> None:
    options = SearchOptions(model="m", data="d", variants=("rslora", "loraplus"))
    assert options.variant == {"use_rslora": True, "loraplus_lr_ratio": 16}
    assert not options.hyper_parameters().variant, "the default recipe stays plain"
    with pytest.raises(InputError, match=r"--variants must be among rslora, loraplus, dora, got 'rslor'"):
        SearchOptions(model="m", data="d", variants=("rslor",))
    with pytest.raises(InputError, match="--tune-variants must be among"):
        SearchOptions(model="m", data="d", tune_variants=("x",))
    with pytest.raises(InputError, match="got rslora in both"):
        SearchOptions(model="m", data="d", variants=("rslora",), tune_variants=("rslora", "loraplus"))
    with pytest.raises(InputError, match="a stage of --strategy evidence, got 'guide'"):
        SearchOptions(model="m", data="d", tune_variants=("rslora",), strategy="guide")
