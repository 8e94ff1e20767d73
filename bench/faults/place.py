"""A tiny model with learnable rows, a short search on them in a child process, and where the figures go."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

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


def warm_up(options: dict[str, Any], out: Path) -> None:
    """A whole run in this process, so that its children have all that a run loads; without figures, which take half."""
    missing: Any = None  # as where the extra is not installed
    sys.modules["matplotlib"] = missing
    import loratune
    from loratune.costs import measuring

    measuring.SECONDS = 0.02
    loratune.tune(**options, out=out, progress=False)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended."""

    killed: bool
    said: str = ""


@dataclass
class Run:
    """A run directory and all that was told of it, whatever became of the processes."""

    options: dict[str, Any]
    out: Path
    seconds: float = 0.0
    """Of the last part."""
    trained_again: int = 0
    told: set[str] = field(default_factory=set)
    """Keys of the trials that were told as finished."""
    returned: int = 0

    def go(
        self,
        *,
        until: float | None = None,
        before: Callable[[], object] | None = None,
        after: Callable[[], int] | None = None,
        mark: bool = False,
        limit: float = 10 * SECONDS,
    ) -> Ended:
        """Begin or resume it in a child; kill that after `until` seconds.

        `before`, `after`: called in the child; `mark`: put finished trials into the log of changes, too. Raises
        `RuntimeError` where it ends with an error, `Hang` after a limit.
        """
        ours, theirs = os.pipe()
        began, child = time.monotonic(), os.fork()
        if child == 0:
            os.close(ours)
            os._exit(_child(self.options, self.out, theirs, before, after, mark))
        os.close(theirs)
        text = b""
        while True:
            passed = time.monotonic() - began
            if until is not None and passed > until:
                os.kill(child, signal.SIGKILL)
                until = None
            if passed > limit:
                os.kill(child, signal.SIGKILL)
                raise Hang
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            time.sleep(0.002)
        while piece := os.read(ours, 65536):
            text += piece
        os.close(ours)
        self.seconds = time.monotonic() - began
        keys = set()
        for line in text.decode().splitlines():
            kind, _, rest = line.partition(" ")
            if kind == "count":
                self.returned = int(rest)
            else:
                keys.add(rest)
        self.trained_again += len(keys & self.told)
        self.told |= keys
        killed = os.WIFSIGNALED(status)
        if not killed and os.WEXITSTATUS(status) != 0:
            raise RuntimeError(f"a run ended with {os.WEXITSTATUS(status)}")
        return Ended(killed)

    def answer(self) -> object:
        """What is recommended at the end."""
        from loratune.reporting.result import load_result

        return load_result(self.out).recommended

    def remove(self) -> None:
        """Make room for the next one."""
        shutil.rmtree(self.out, ignore_errors=True)


def _child(
    options: dict[str, Any],
    out: Path,
    told: int,
    before: Callable[[], object] | None,
    after: Callable[[], int] | None,
    mark: bool,
) -> int:
    import operations

    import loratune
    from loratune.values.events import Event, TrialEnded

    def tell(event: Event) -> None:
        if isinstance(event, TrialEnded):
            os.write(told, f"trial {event.key}\n".encode())
            if mark:
                operations.mark(event.key)

    try:
        if before is not None:
            before()
        loratune.tune(**options, out=out, resume=out.exists(), on_event=tell, progress=False)
        if after is not None:
            os.write(told, f"count {after()}\n".encode())
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


Item = TypeVar("Item")
Found = TypeVar("Found")


def each_of(work: Callable[[Item], Found], items: Sequence[Item], jobs: int) -> list[Found]:
    """The work done on all items, in processes forked from this one; how far it is, is printed."""
    found = []
    with get_context("fork").Pool(jobs) as pool:
        for each in pool.imap(work, items):
            found.append(each)
            print(f"{len(found)} of {len(items)}: {str(each)[:60]}", flush=True)
    return found


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
