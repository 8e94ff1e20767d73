"""A tiny model with learnable rows, a short search on them in a child process, and where the figures go."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / each) for each in ("src", "tests", "bench")]
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from record import append, circumstances  # noqa: E402
from tiny import animal_rows, save_tiny_model, write_jsonl  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "faults.csv"
SECONDS = 30
"""After which a command is said to hang."""


class Hang(BaseException):
    """A command has taken longer than `SECONDS`; no `Exception`, so that nothing mistakes it for its own."""


def search(folder: Path) -> dict[str, Any]:
    """Options of a search of a few seconds; model and rows are written into the folder."""
    return {
        "model": save_tiny_model(folder / "model"),
        "data": write_jsonl(folder / "train.jsonl", animal_rows(60)),
        "dtype": "float32",
        "device": "cpu",
        "strategy": "grid",
        "epochs": 1.0,
        "budget": "20x",
        "ranks": [2, 4],
        "learning_rates": [1e-3, 1e-2],
        "batch_sizes": [16],
        "pack_size": 2,
        "validation_rows": 8,
        "test_rows": 8,
        "no_ledger": True,
    }


@contextmanager
def limited() -> Iterator[None]:
    """Raise `Hang` in the main thread after `SECONDS`."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def keep(what: str, **figures: Any) -> None:
    """Print the figures and add them to the table."""
    print(what, figures, flush=True)
    append(RESULTS, circumstances() | {"what": what, **figures})
