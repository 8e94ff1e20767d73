"""What a command takes from files and from a run directory; what it says where something is missing or unknown."""

import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from command_fixture import Place, Shell
from loratune.cli.given import merged
from loratune.errors import InputError
from loratune.tuning.configuration import read_options, to_toml
from loratune.tuning.options import RecommendOptions, TrainOptions, TuneOptions

pytest_plugins = ["command_fixture"]

YAML = """# a comment
model: m
data: d
learning_rates: [1e-4, 3E-3, 0.01]
ranks: [4, 8]
target_modules:
  - q_proj
  - v_proj
template: "News: {text}\\\\nTopic:"
regularise: true
budget: 3x
margin:
"""
TOML = """model = "m"
data = "d"
learning_rates = [1e-4, 3e-3, 0.01]
ranks = [4, 8]
target_modules = ["q_proj", "v_proj"]
template = 'News: {text}\\nTopic:'
regularise = true
budget = "3x"
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_yaml_says_what_toml_says(tmp_path: Path) -> None:
    """1e-4 is a number, as in YAML 1.2 (PyYAML alone takes it for text); a key without a value is left out."""
    yaml, toml = write(tmp_path / "a.yaml", YAML), write(tmp_path / "a.toml", TOML)
    assert read_options(yaml) == read_options(toml)
    assert TuneOptions(**read_options(yaml)).learning_rates == (1e-4, 3e-3, 0.01)
    assert read_options(write(tmp_path / "empty.yml", "# nothing\n")) == {}


NO_YAML = {
    "a list": ("- model\n", "no mapping"),
    "cut off": ('model: "m', "line 1"),
    "the same key twice": ("model: m\nmodel: n\n", "'model' is there twice"),
    "an object of Python": (
        "model: !!python/object/apply:os.getcwd []\n",
        "could not determine a constructor",
    ),
    "deep lists": (f"ranks: {'[' * 1500}", "ranks"),
    "no UTF-8": (b"model: '\xff'", "decode"),
}


@pytest.mark.parametrize("case", NO_YAML)
def test_a_file_that_is_no_yaml_is_one_sentence(case: str, tmp_path: Path) -> None:
    content, says = NO_YAML[case]
    file = tmp_path / "x.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match="--config must be a readable YAML file") as caught:
        read_options(file)
    assert "\n" not in str(caught.value)
    assert case == "deep lists" or says in str(caught.value)


def test_lists_that_hold_each_other_are_told_in_few_words(tmp_path: Path) -> None:
    """Nine levels of nine references are 387 million entries when they are written out."""
    lines = ["a0: &a0 [1]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10))]
    bomb = "\n".join(lines)
    with pytest.raises(InputError, match="'a0'"):
        read_options(write(tmp_path / "x.yaml", bomb))
    known = bomb.replace("a9:", "ranks:")
    values = {"ranks": read_options_of(write(tmp_path / "y.yaml", known))}
    with pytest.raises(InputError, match="--ranks must be a list of whole numbers") as caught:
        TuneOptions(model="m", data="d", **values)
    assert len(str(caught.value)) < 500


def read_options_of(path: Path) -> tuple[object, ...]:
    from loratune.files.read_yaml import parse_yaml

    return tuple(parse_yaml(path.read_text())["ranks"])


@pytest.mark.parametrize(
    ("key", "alike"), [("batch-sizes", "batch_sizes"), ("rank", "ranks"), ("Epochs", "epochs")]
)
def test_an_unknown_key_names_the_nearest(key: str, alike: str, tmp_path: Path) -> None:
    for name, line in (("x.toml", f'"{key}" = 1\n'), ("x.yaml", f"{key}: 1\n")):
        with pytest.raises(InputError, match=rf"'{key}' \(did you mean {alike}\?\)"):
            read_options(write(tmp_path / name, line))
    with pytest.raises(InputError, match="got 'zzzz'; known"):
        read_options(write(tmp_path / "z.toml", "zzzz = 1\n"))


def test_a_file_of_train_has_other_keys(tmp_path: Path) -> None:
    file = write(tmp_path / "t.yaml", "model: m\ndata: d\nrank: 4\n")
    assert merged(TrainOptions, {"epochs": 2.0}, config=file) == TrainOptions(
        model="m", data="d", rank=4, epochs=2.0
    )
    with pytest.raises(InputError, match=r"options of train, got 'ranks' \(did you mean rank\?\)"):
        merged(TrainOptions, {}, config=write(tmp_path / "u.yaml", "ranks: [4]\n"))
    with pytest.raises(InputError, match=r"options of tune, got 'rank' "):
        merged(RecommendOptions, {}, config=file)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("tune",), ("--model and --data are required", "--config")),
        (("plan", "--data", "d"), ("--model is required",)),
        (("train",), ("--model and --data are required",)),
        (("recommend",), ("--model and --data are required",)),
        (("generate",), ("DIRECTORY and TEXT are required",)),
        (("export",), ("DIRECTORY and --to are required",)),
        (("merge",), ("DIRECTORY and --out are required",)),
    ],
)
def test_all_that_is_missing_is_said_at_once(
    arguments: tuple[str, ...], says: tuple[str, ...], shell: Shell
) -> None:
    ran = shell(*arguments)
    assert ran.code == 2
    for word in says:
        assert word in ran.error
    assert shell.written == []


@pytest.mark.parametrize(
    ("arguments", "alike"),
    [(("tune", "--modl", "x"), "--model"), (("tun",), "tune"), (("train", "--rnk", "4"), "--rank")],
)
def test_an_unknown_option_or_command_names_the_nearest(
    arguments: tuple[str, ...], alike: str, shell: Shell
) -> None:
    ran = shell(*arguments)
    assert ran.code == 2
    assert alike in ran.err


RUN = TuneOptions(model="m", data="d", ranks=(2, 8), budget="9x", template="{a}", out="somewhere/else")


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A run directory as far as its options go, moved since."""
    (tmp_path / "moved").mkdir()
    return write(tmp_path / "moved" / "loratune.toml", to_toml(RUN)).parent


def test_resume_needs_nothing_but_the_directory(kept: Path) -> None:
    expected = {**asdict(RUN), "metric": RUN.optimised, "out": str(kept), "resume": True}
    assert asdict(merged(TuneOptions, {"resume": True}, directory=kept)) == expected
    assert asdict(merged(TuneOptions, {"resume": True, "out": str(kept)})) == expected
    more = merged(TuneOptions, {"resume": True, "budget": "20x"}, directory=kept)
    assert (more.budget, more.ranks) == ("20x", (2, 8))


def test_the_directory_and_resume_belong_together(kept: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="add --resume"):
        merged(TuneOptions, {"model": "m", "data": "d"}, directory=kept)
    with pytest.raises(InputError, match="one directory"):
        merged(TuneOptions, {"resume": True, "out": str(tmp_path)}, directory=kept)
    with pytest.raises(InputError, match=r"--model and --data are required, as .* holds no loratune\.toml"):
        merged(TuneOptions, {"resume": True}, directory=tmp_path)


def test_code_that_a_directory_names_is_not_run(kept: Path) -> None:
    file = kept / "loratune.toml"
    file.write_text(file.read_text().replace('metric = "nll"', 'metric = "evil:score"'))
    with pytest.raises(InputError, match="names code, the metric evil:score"):
        merged(TuneOptions, {"resume": True}, directory=kept)


def test_an_option_that_contradicts_the_directory_is_refused_by_name(
    place: Place, shell: Shell, tmp_path: Path
) -> None:
    """From the study itself, before the model is loaded."""
    from loratune.study.record import Study
    from loratune.tuning.resumption import option_values

    out = tmp_path / "run"
    options = TuneOptions(model=str(place.model), data=str(place.data), ranks=(2,), out=str(out))
    Study.open(out, fingerprint=option_values(options), metric="nll").close()
    write(out / "loratune.toml", to_toml(options))
    ran = shell("tune", "--resume", out, "--ranks", "4,8", "--seed", "3")
    assert ran.code == 2
    assert "ranks" in ran.error
    assert "seed" in ran.error


def test_completion(tmp_path: Path) -> None:
    """bash takes the script that is printed; it asks the program, which knows commands and options."""
    program = shutil.which("loratune", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert program is not None
    run = {"text": True, "capture_output": True, "check": True}
    script = subprocess.run([program], env={**os.environ, "_LORATUNE_COMPLETE": "source_bash"}, **run).stdout
    asked = (
        'COMP_WORDS=(loratune tune --ran); COMP_CWORD=2; _loratune_completion "$0"; echo "${COMPREPLY[@]}"'
    )
    found = subprocess.run(["bash", "-c", f"{script}\n{asked}", program], env=dict(os.environ), **run).stdout
    assert found.split() == ["--ranks"]


def test_a_word_for_epochs_that_is_none(shell: Shell, place: Place) -> None:
    ran = shell("tune", *place.options, "--epochs", "soon", "--out", "run")
    assert ran.code == 2
    assert ran.error == "error: --epochs must be a number, such as 3, or auto, got 'soon'."
    assert shell.written == []
