"""The house rules that a machine can check: import direction, lazy torch, size budget."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "loratune"
LAYERS = [
    {"errors"},
    {"values", "files"},
    {"maths", "kernels"},
    {"metrics"},
    {"data", "model", "lora", "objectives", "study"},
    {"engine", "search"},
    {"costs"},
    {"runners"},
    {"analysis"},
    {"reporting", "export", "trackers", "testing"},
    {"tuning"},
    {"app"},
    {"cli"},
    {"__main__", "__init__"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
TORCH_ROOMS = {
    "kernels",
    "model",
    "lora",
    "engine",
    "costs",
    "runners",
    "analysis",
    "tuning",
    "app",
    "objectives",
    "testing",
}
TORCH_FILES = {"data/batches.py", "trackers/libraries.py"}
HEAVY = {"torch", "transformers", "peft"}
FILES = sorted(SOURCE.rglob("*.py"))


def room_of(path: Path) -> str:
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def imported_modules(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_downwards(path: Path) -> None:
    room = room_of(path)
    assert room in LEVEL, f"{room} has no layer"
    for module in imported_modules(path):
        parts = module.split(".")
        if parts[0] != "loratune" or len(parts) == 1:
            continue
        target = parts[1]
        lower = LEVEL[target] < LEVEL[room]
        assert lower or target == room, f"{path.name} ({room}) imports {module}"


def test_no_circles() -> None:
    """Not within a room either, nor through the face of one, and not for the sake of a type.

    The package's own face is left out: it names commands, which load on first use.
    """

    def name_of(path: Path) -> str:
        parts = ("loratune", *path.relative_to(SOURCE).with_suffix("").parts)
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    names = {name_of(path): path for path in FILES if path != SOURCE / "__init__.py"}
    imports: dict[str, set[str]] = {}
    for name, path in names.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        imports[name] = found & names.keys() - {name}

    def reached(name: str) -> set[str]:
        seen: set[str] = set()
        waiting = [name]
        while waiting:
            new = imports[waiting.pop()] - seen
            seen |= new
            waiting += new
        return seen

    assert not [name for name in names if name in reached(name)]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_torch_stays_in_its_rooms(path: Path) -> None:
    relative = str(path.relative_to(SOURCE))
    if room_of(path) in TORCH_ROOMS or relative in TORCH_FILES:
        return
    heavy = {module.split(".")[0] for module in imported_modules(path)} & HEAVY
    assert not heavy, f"{relative} imports {heavy}"


def test_importing_loratune_imports_no_torch() -> None:
    probe = (
        "import loratune, sys; print([m for m in ('torch', 'transformers', 'optuna') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_size_budget() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in FILES}
    assert median(lengths.values()) <= 200
    for path, length in lengths.items():
        assert length <= 500, f"{path.relative_to(SOURCE)} has {length} lines"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = (node.end_lineno or node.lineno) - node.lineno + 1
                assert size <= 100, f"{path.relative_to(SOURCE)}:{node.name} has {size} lines"


def test_the_tree_of_the_readme_is_that_of_the_folders() -> None:
    """Every room once, and nothing that is not there."""
    root = SOURCE.parent.parent
    named = re.findall(
        r"^\| `([^`]+)` \|", (root / "README.md").read_text().split("## The tree")[1], re.MULTILINE
    )
    rooms = [f"src/loratune/{each.name}" for each in SOURCE.iterdir() if (each / "__init__.py").exists()]
    assert sorted(named) == sorted([*rooms, "src/loratune/errors.py", "examples", "tests", "bench", "docs"])


def test_the_design_page_is_of_these_rooms() -> None:
    """Its table has the layers, its sections every room, and whom a section names as a user imports that room."""
    page = (SOURCE.parent.parent / "docs" / "design.md").read_text()
    table = [
        set(re.findall(r"`(\w+)`", line)) for line in re.findall(r"^\| L\d+ \|(.*)$", page, re.MULTILINE)
    ]
    assert table == LAYERS[:-1]
    sections = re.findall(
        r"^### (`.*?):.*?\*\*Used by\*\*: (.*?)\*\*Must not know", page, re.MULTILINE | re.DOTALL
    )
    described = [re.findall(r"`(\w+)`", heading) for heading, _ in sections]
    assert sorted(room for rooms in described for room in rooms) == sorted(set.union(*table))
    users: dict[str, set[str]] = {room: set() for room in LEVEL}
    for path in FILES:
        for module in imported_modules(path):
            if module.startswith("loratune."):
                users[module.split(".")[1]].add(room_of(path))
    for rooms, (_, named) in zip(described, sections, strict=True):
        assert set(re.findall(r"`(\w+)[`/]", named)) <= set.union(*(users[room] for room in rooms)), rooms
