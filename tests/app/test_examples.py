"""The example files: valid in their own formats, and each command in them is one that loratune takes."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from loratune.cli.commands import app

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def check(words: list[str]) -> None:
    """Options exist and have values; raises what click raises."""
    assert words[0] == "loratune"
    command = typer.main.get_group(app).commands[words[1]]
    with command.make_context(words[1], list(words[2:])) as context:
        assert context.params


def lines(text: str) -> list[list[str]]:
    """Commands of a shell script."""
    joined = text.replace("\\\n", " ")
    found = re.findall(r"^\s*(?:exec )?(loratune .*?)(?: &)?$", joined, re.MULTILINE)
    return [[word.strip('"') for word in line.split()] for line in found]


def test_slurm() -> None:
    script = EXAMPLES / "slurm.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    commands = lines(script.read_text())
    assert [words[1] for words in commands] == ["tune", "worker"]
    for words in commands:
        check(words)


def test_kubernetes() -> None:
    driver, workers = yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text())
    for job in (driver, workers):
        assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
        pod: dict[str, Any] = job["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        check(container["command"])
        assert {each["name"] for each in container["volumeMounts"]} == {
            each["name"] for each in pod["volumes"]
        }
        assert pod["restartPolicy"] == "OnFailure"
    assert workers["spec"]["completionMode"] == "Indexed"
    assert workers["spec"]["completions"] == workers["spec"]["parallelism"]


def test_skypilot(tmp_path: Path) -> None:
    task = yaml.safe_load((EXAMPLES / "skypilot.yaml").read_text())
    assert {"name", "num_nodes", "resources", "setup", "run"} <= set(task)
    script = tmp_path / "run.sh"
    script.write_text(task["run"])
    subprocess.run(["bash", "-n", str(script)], check=True)
    for words in lines(task["run"]):
        check(words)


@pytest.mark.parametrize("name", ["slurm.sh", "kubernetes.yaml", "skypilot.yaml"])
def test_the_page_names_it(name: str) -> None:
    assert name in (EXAMPLES.parent / "docs" / "more-than-one-gpu.md").read_text()
