"""What is learnt is asked of a `Task` or an `Objective`: no other file compares their names or knows a class."""

import ast
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from engine_fixture import tiny_llama
from loratune.objectives.registry import OBJECTIVES
from loratune.values import tasks
from loratune.values.tasks import TASKS, Task, task_of

SOURCE = Path(__file__).parent.parent.parent / "src" / "loratune"
HOME = SOURCE / "values" / "tasks.py"
FILES = sorted(path for path in SOURCE.rglob("*.py") if path.relative_to(SOURCE).parts[0] != "objectives")
NAMES = {*TASKS, *OBJECTIVES}
CONSTANTS = {name for name, value in vars(tasks).items() if isinstance(value, Task)}
SHARED = {"objective", "registry"}
"""Files of the room that others may import: the protocol and the list."""
MEMBERS = {"reference", "language_model", "needs_reference", "head", "group"}


def named(node: ast.AST) -> bool:
    """Whether an expression is a task's or an objective's name, or such a value itself."""
    if isinstance(node, ast.Attribute):
        return named(node.value) or (isinstance(node.value, ast.Name) and node.attr in CONSTANTS)
    if isinstance(node, ast.Name):
        return node.id in CONSTANTS
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return any(map(named, node.elts))
    return isinstance(node, ast.Constant) and node.value in NAMES


def asked_of_a_task(node: ast.AST) -> bool:
    """Whether what is compared is called a task or an objective."""
    return isinstance(node, ast.Attribute | ast.Name) and ast.unparse(node).split(".")[-1] in {
        "task",
        "objective",
        "learns",
    }


def comparisons(tree: ast.AST) -> Iterator[int]:
    """Lines that compare what is learnt with a name, or look at an objective's class."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = (node.left, *node.comparators)
            constant = any(named(side) and not isinstance(side, ast.Constant) for side in sides)
            if constant or (any(map(named, sides)) and any(map(asked_of_a_task, sides))):
                yield node.lineno
        elif isinstance(node, ast.MatchValue) and named(node.value):
            yield node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            first = ast.unparse(node.args[0]).split(".")[-1].lstrip("_") if node.args else ""
            looked_up = node.func.id in {"getattr", "hasattr"} and isinstance(node.args[1], ast.Constant)
            if looked_up and node.args[1].value in MEMBERS and first == "objective":
                yield node.lineno
            if node.func.id == "isinstance" and first == "objective":
                yield node.lineno


def concrete(tree: ast.AST) -> Iterator[int]:
    """Lines that import an objective by its own file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("loratune.objectives"):
            below = (node.module or "").removeprefix("loratune.objectives").lstrip(".")
            if (below or node.names[0].name) not in SHARED:
                yield node.lineno
        if isinstance(node, ast.Import):
            for each in node.names:
                if each.name.startswith("loratune.objectives.") and each.name.split(".")[2] not in SHARED:
                    yield node.lineno


def test_no_other_file_knows_which_objective_it_is() -> None:
    found = {}
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if lines := [*concrete(tree), *([] if path == HOME else comparisons(tree))]:
            found[str(path.relative_to(SOURCE))] = lines
    assert not found, f"these lines look at what is learnt; ask the task or the objective: {found}"


@pytest.mark.parametrize(
    "code",
    [
        "if options.task == CLASSIFICATION: pass",
        "x = spec.objective != tasks.CAUSAL.objective",
        'x = given.get("task") == PREFERENCE',
        'x = task in ("causal", "preference")',
        'x = "dpo" == learns',
        "isinstance(evaluator.objective, Causal)",
        'getattr(engine.objective, "needs_reference", False)',
    ],
)
def test_what_counts_as_a_comparison(code: str) -> None:
    assert list(comparisons(ast.parse(code)))


@pytest.mark.parametrize(
    "code", ["from loratune.objectives.causal import Causal", "import loratune.objectives.preference"]
)
def test_what_counts_as_one_objective(code: str) -> None:
    assert list(concrete(ast.parse(code)))


def test_other_uses_are_free() -> None:
    code = 'task not in TASKS; shape == "classification"; from loratune.objectives.registry import OBJECTIVES'
    tree = ast.parse(code)
    assert not [*comparisons(tree), *concrete(tree)]


def test_every_name_of_a_task_has_an_objective_and_the_other_way_round() -> None:
    assert {name for task in TASKS.values() for name in task.objectives} == set(OBJECTIVES)
    assert all(task_of(name).name == task.name for task in TASKS.values() for name in task.objectives)
    assert all(name == task.name for name, task in TASKS.items())


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if not task_of(name).has_answers])
def test_what_a_task_says_is_what_its_objective_does(name: str) -> None:
    objective = OBJECTIVES[name](tiny_llama().model, lambda function: function)
    assert objective.group == task_of(name).group
    assert bool(objective.head) is task_of(name).has_answers
    assert (objective.reference is not None) is (name == "dpo")
    assert objective.language_model is objective


def test_a_task_is_plain_values() -> None:
    kinds = {type(getattr(task, each.name)) for task in TASKS.values() for each in fields(Task)}
    assert kinds <= {str, tuple, dict, int, bool}
