"""Every command that README.md and docs/ show is taken by what it is written for; those that are cheap are run.

Those that would train or calibrate for long are given to the real command line where their model does not exist: it
says so after all options were read and checked, and not before.
"""

import ast
import inspect
import re
import shutil
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

import loratune
from command_fixture import Place, Ran, Shell
from loratune.cli.commands import app
from loratune.costs import measuring
from shown import PAGES, ROOT, Command, blocks, commands, outside_blocks
from tiny import animal_rows, write_jsonl

pytest_plugins = ["command_fixture"]

MODELS = ("M", "N", "HuggingFaceTB/SmolLM2-135M-Instruct")
CHEAP = {"doctor", "generate", "init", "ledger", "memory", "merge", "export", "recommend", "report"}
"""Run to their end on a tiny model, or on a run of it."""
LASTING = {
    "watch": "watch needs the run directory of a tune",
    "worker": "A worker needs a run directory whose study takes workers",
}
"""Serve until they are ended; what they say where there is nothing to serve."""
SHOWN = commands()
LORATUNE = [each for each in SHOWN if each.words[0] == "loratune"]


@pytest.fixture(scope="module", autouse=True)
def _short_calibration() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "SECONDS", 0.05)
        yield


def prepare(folder: Path) -> None:
    """Files that commands name, beside the rows."""
    (folder / "loratune.toml").write_text('model = "M"\ndata = "train.jsonl"\n', encoding="utf-8")
    trl, axolotl = folder / "their.yaml", folder / "axolotl.yaml"
    trl.write_text("model_name_or_path: M\ndataset_name: rows\n", encoding="utf-8")
    axolotl.write_text("base_model: M\ndatasets:\n  - path: train.jsonl\n", encoding="utf-8")
    theirs = next(each.text for each in blocks("yaml") if each.text.startswith("# options.yaml"))
    (folder / "options.yaml").write_text(theirs, encoding="utf-8")
    metrics = next(each.text for each in blocks("python") if each.text.startswith("# my_metrics.py"))
    (folder / "my_metrics.py").write_text(metrics, encoding="utf-8")


@pytest.fixture(scope="module")
def lived(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a run of the tiny model is finished, as `runs/mine` and `runs/there`."""
    folder = tmp_path_factory.mktemp("lived")
    write_jsonl(folder / "train.jsonl", animal_rows(120))
    loratune.tune(
        **place.keywords, out=folder / "runs" / "mine", ranks=[2], learning_rates=[1e-2], batch_sizes=[8],
        budget="3x", no_ledger=True,
    )  # fmt: skip
    shutil.copytree(folder / "runs" / "mine", folder / "runs" / "there")
    return folder


@pytest.mark.parametrize("command", [each for each in LORATUNE if each.words[1] in LASTING], ids=str)
def test_a_lasting_command_is_taken(command: Command, shell: Shell) -> None:
    """Where its run does not exist it says so, after all else was read."""
    ran = shell(*command.words[1:])
    assert ran.code == 2
    assert LASTING[command.words[1]] in ran.error


def is_run(command: Command) -> bool:
    """To its end, in a folder where a run is finished."""
    return command.words[1] in CHEAP or "--resume" in command.words


def one_each(found: list[Command]) -> list[Command]:
    return list({each.words: each for each in found}.values())


@pytest.mark.parametrize(
    "command", one_each([c for c in LORATUNE if not is_run(c) and c.words[1] not in LASTING]), ids=str
)
def test_a_long_command_is_taken(command: Command, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)  # as `--devices all` needs some
    prepare(shell.folder)
    if "--config" in command.words:
        old = shell.folder / "runs" / "mine"
        old.mkdir(parents=True)
        (old / "loratune.toml").write_text('model = "M"\ndata = "train.jsonl"\n', encoding="utf-8")
    ran = shell(*command.words[1:])
    assert ran.code == 2
    assert re.match(rf"error: ({'|'.join(MODELS)}) was not found locally", ran.error), ran.error


@pytest.mark.parametrize("command", one_each([c for c in LORATUNE if is_run(c)]), ids=str)
def test_a_cheap_command_is_run(
    command: Command, shell: Shell, place: Place, lived: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(lived, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    ran = run(command, shell, place)
    assert ran.code == 0, ran.err
    assert ran.out or ran.err


def run(command: Command, shell: Shell, place: Place) -> Ran:
    words = [str(place.model) if word in MODELS else word for word in command.words[1:]]
    return shell(*words)


def test_a_script_has_its_options() -> None:
    for command in SHOWN:
        if command.words[0] == "python":
            script, *given = command.words[1:]
            calls = ast.walk(ast.parse((ROOT / script).read_text(encoding="utf-8")))
            known = {
                str(each.args[0].value)
                for each in calls
                if isinstance(each, ast.Call)
                and isinstance(each.func, ast.Attribute)
                and each.func.attr == "add_argument"
                and isinstance(each.args[0], ast.Constant)
            }
            assert {word for word in given if word.startswith("--")} <= known, str(command)


def _made(words: tuple[str, ...]) -> bool:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    return set(words[1:]) <= set(targets)


def _installed(words: tuple[str, ...]) -> bool:
    """From the checkout with extras that exist, or a package that is one of them."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = [word for word in words[2:] if not word.startswith("-")]
    packages = {re.split(r"[<>=\[]", each)[0] for group in extras.values() for each in group}
    named = [re.fullmatch(r"\.(?:\[([\w,]+)\])?", word) for word in wanted]
    return words[1] == "install" and all(
        set((found[1] or "report").split(",")) <= extras.keys() if found else word in packages
        for found, word in zip(named, wanted, strict=True)
    )


TAKEN: dict[str, Callable[[tuple[str, ...]], bool]] = {
    "loratune": lambda words: True,  # by the tests above
    "python": lambda words: True,
    "make": _made,
    "pip": _installed,
    "optuna-dashboard": lambda words: len(words) == 2 and words[1].startswith("sqlite:///"),
    "trl": lambda words: words[1:3] == ("sft", "--config"),
}
"""By the program, whether a command is one that it takes."""


@pytest.mark.parametrize("command", one_each(SHOWN), ids=str)
def test_nothing_else_is_shown(command: Command) -> None:
    assert command.words[0] in TAKEN
    assert TAKEN[command.words[0]](command.words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_command_hides_from_the_tests(page: Path) -> None:
    """Commands stand in bash blocks: neither indented nor in blocks of another kind."""
    others = [each.text for each in blocks("", "text", "console", "sh", "shell") if each.page == page.name]
    program = r"(?:\$ )?(?:loratune|make|pip|python|optuna-dashboard) \S.*"
    assert not re.findall(rf"^(?: {{4}}|\$ ){program}", outside_blocks(page), re.MULTILINE)
    assert not re.findall(rf"^{program}", "\n".join(others), re.MULTILINE)


def all_commands(group: Any) -> Iterator[Any]:
    for command in group.commands.values():
        yield command
        yield from all_commands(command) if hasattr(command, "commands") else ()


def flags(command: Any) -> set[str]:
    return {flag for each in command.params for flag in (*each.opts, *each.secondary_opts)}


def test_options_in_sentences_exist() -> None:
    """Every `--option` that a page names is one of some command's (other pages have the benches' too)."""
    group = typer.main.get_command(app)
    known = {flag for command in (group, *all_commands(group)) for flag in flags(command)}
    about_others = ("log.md", "performance.md", "design.md", "evidence.md")
    for page in PAGES:
        if page.name not in about_others:
            named = set(re.findall(r"`(--[a-z][\w-]*)", outside_blocks(page)))
            assert named <= known | {"--help"}, page.name


def test_python_blocks_use_keywords_that_exist() -> None:
    seen = 0
    for block in blocks("python"):
        for call in ast.walk(ast.parse(block.text)):
            if isinstance(call, ast.Call) and ast.unparse(call.func).startswith("loratune."):
                function = getattr(loratune, ast.unparse(call.func).removeprefix("loratune."))
                known = inspect.signature(function).parameters
                assert {each.arg for each in call.keywords} <= known.keys(), block.page
                seen += 1
    assert seen >= 3
