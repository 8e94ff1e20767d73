"""Every package that is imported is declared, and every one that is declared has its reason."""

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "loratune"
IMPORTED_AS = {
    "yaml": "pyyaml",
    "sklearn": "scikit-learn",
    "mlflow": "mlflow-skinny",
    "rouge_score": "rouge-score",
}
BY_OTHERS = {"scikit-learn"}
"""Declared, as another package needs it for what is used of it."""
WITH_TORCH = {"triton"}
FOR_TYPE_CHECKERS = {"_typeshed"}


def declared(group: str | None = None) -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    entries = project["dependencies"] if group is None else project["optional-dependencies"][group]
    return {re.split(r"[<>=\[ ]", entry)[0] for entry in entries}


def imported() -> set[str]:
    found: set[str] = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
    others = found - set(sys.stdlib_module_names) - FOR_TYPE_CHECKERS - {"loratune"}
    return {IMPORTED_AS.get(name, name) for name in others}


def test_what_is_imported_is_declared() -> None:
    optional = {
        name
        for group in ("report", "gguf", "nf4", "generation", "ray", "wandb", "mlflow", "trackio", "testing")
        for name in declared(group)
    }
    assert imported() - optional - WITH_TORCH - declared() == set()
    assert declared() - imported() == BY_OTHERS


def test_every_dependency_has_its_reason() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| (\S.*?) \|", (ROOT / "docs" / "dependencies.md").read_text(), re.M)
    assert {name for name, _ in rows} == declared()
