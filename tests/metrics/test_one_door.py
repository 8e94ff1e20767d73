"""No file but the metrics' own compares metric names, lists them, or repeats the default margin."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from loratune.metrics import BUILT_IN
from loratune.metrics import names as metric_names
from loratune.values import NLL_MARGIN

SOURCE = Path(__file__).parent.parent.parent / "src" / "loratune"
FILES = sorted(path for path in SOURCE.rglob("*.py") if path.relative_to(SOURCE).parts[0] != "metrics")
LISTS = {
    name: value
    for name, value in vars(metric_names).items()
    if name.endswith("_NAMES") and not name.startswith("_")
}
HOME_OF_THE_MARGIN = SOURCE / "values" / "context.py"


def names(node: ast.AST) -> list[str]:
    """Metric names that stand in an expression, alone or in a collection."""
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return [name for each in node.elts for name in names(each)]
    if isinstance(node, ast.Name) and node.id in LISTS:
        return list(LISTS[node.id])
    return [node.value] if isinstance(node, ast.Constant) and node.value in BUILT_IN else []


def comparisons(tree: ast.AST) -> Iterator[int]:
    """Lines that compare something with a metric's name, or list several."""
    for node in ast.walk(tree):
        compared = isinstance(node, ast.Compare) and any(map(names, (node.left, *node.comparators)))
        matched = isinstance(node, ast.MatchValue) and names(node.value)
        listed = isinstance(node, ast.Tuple | ast.List | ast.Set) and len(names(node)) > 1
        if compared or matched or listed:
            yield node.lineno


def margins(tree: ast.AST) -> Iterator[int]:
    """Lines that give the default margin as a number to something called a margin."""
    for node in ast.walk(tree):
        pairs: list[tuple[str, ast.AST | None]] = []
        if isinstance(node, ast.Assign):
            pairs = [(ast.unparse(target), node.value) for target in node.targets]
        elif isinstance(node, ast.AnnAssign):
            pairs = [(ast.unparse(node.target), node.value)]
        elif isinstance(node, ast.keyword):
            pairs = [(node.arg or "", node.value)]
        elif isinstance(node, ast.arguments):
            own = [*node.posonlyargs, *node.args]
            pairs = [(a.arg, d) for a, d in zip(own[::-1], node.defaults[::-1], strict=False)]
            pairs += [(a.arg, d) for a, d in zip(node.kwonlyargs, node.kw_defaults, strict=True)]
        for name, value in pairs:
            if "margin" in name.lower() and value is not None:
                found = [n for n in ast.walk(value) if isinstance(n, ast.Constant) and n.value == NLL_MARGIN]
                yield from (constant.lineno for constant in found)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_metric_names_are_compared_in_one_room(path: Path) -> None:
    lines = list(comparisons(ast.parse(path.read_text())))
    assert not lines, (
        f"{path.relative_to(SOURCE)} compares metric names in lines {lines}: ask the metric instead"
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_the_default_margin_stands_once(path: Path) -> None:
    lines = list(margins(ast.parse(path.read_text())))
    expected = 1 if path == HOME_OF_THE_MARGIN else 0
    assert len(lines) == expected, (
        f"{path.relative_to(SOURCE)} repeats the margin in lines {lines}: use NLL_MARGIN"
    )


@pytest.mark.parametrize(
    "code",
    [
        'metric in ("nll", "perplexity")',
        'context.metric == "f1"',
        '"accuracy" != name',
        'KNOWN = ["nll", "accuracy"]',
        "metric in PREFERENCE_NAMES",
        'match metric:\n    case "exact_match":\n        pass',
    ],
)
def test_what_counts_as_a_comparison(code: str) -> None:
    assert list(comparisons(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "def f(*, margin=0.005): ...",
        "def f(a, margin=0.005, b=1): ...",
        "MARGIN = 0.005",
        "margin: float = 0.005",
        "margin = own if known else 0.005",
        "g(margin=0.005)",
    ],
)
def test_what_counts_as_a_repeated_margin(code: str) -> None:
    assert list(margins(ast.parse(code)))


def test_other_uses_are_free() -> None:
    code = 'values["nll"]; METRICS = {"nll": 1, "f1": 2}; share = 0.005; metric == other.name'
    tree = ast.parse(code)
    assert not list(comparisons(tree))
    assert not list(margins(tree))
