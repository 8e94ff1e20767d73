"""Runs in child processes, to be disturbed and resumed, beside one that nothing disturbs: what such scripts share."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import operations
from place import SECONDS, Hang, keep, search


def warm_up(options: dict[str, Any], out: Path) -> None:
    """A whole run in this process, so that its children have all that a run loads; without figures, which take half."""
    missing: Any = None  # as where the extra is not installed
    sys.modules["matplotlib"] = missing
    import loratune
    from loratune.costs import measuring

    measuring.SECONDS = 0.02
    loratune.tune(**options, out=out, progress=False)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a disturbed run: whether it was killed, trials that it trained again, and its answer."""

    killed: bool
    trained_again: int
    answer: object


@dataclass
class Run:
    """A run directory in a folder of its own, and all that was told of it, whatever became of the processes."""

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
    ) -> bool:
        """Begin or resume it in a child, which is killed after `until` seconds; returns whether it was killed.

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
        return killed

    def answer(self) -> object:
        """What is recommended at the end."""
        from loratune.reporting.result import load_result

        return load_result(self.out).recommended

    def outcome(self, killed: bool = False) -> Outcome:
        """What became of it; it makes room for the next one."""
        found = Outcome(killed, self.trained_again, self.answer())
        shutil.rmtree(self.out.parent)
        return found


def _child(
    options: dict[str, Any],
    out: Path,
    told: int,
    before: Callable[[], object] | None,
    after: Callable[[], int] | None,
    mark: bool,
) -> int:
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


def _tried(work: Callable[[Item], Outcome], item: Item) -> Outcome:
    """What ended with an error, which is on the screen, has no answer."""
    try:
        return work(item)
    except (RuntimeError, Hang) as error:
        print(f"{type(error).__name__} {error}: {item}", flush=True)
        return Outcome(killed=False, trained_again=0, answer=None)


@dataclass(frozen=True, slots=True)
class Disturbance:
    """So many runs to disturb, `jobs` at once, in a folder that goes afterwards; `whole` is not disturbed."""

    count: int
    jobs: int
    random: Random
    whole: Run

    def run(self, name: str, told: Iterable[str] = ()) -> Run:
        """One that begins anew, or goes on where these trials were told of."""
        return Run(self.whole.options, self.whole.out.parents[1] / name / "run", told=set(told))

    def keep(self, what: str, work: Callable[[Item], Outcome], items: Sequence[Item], **figures: int) -> None:
        """Do the work on all items, in processes forked from this one, and put what became of them into the table."""
        expected, found = self.whole.answer(), list[Outcome]()
        with get_context("fork").Pool(self.jobs) as pool:
            for each in pool.imap(partial(_tried, work), items):
                found.append(each)
                print(f"{len(found)} of {len(items)}: {str(each)[:60]}", flush=True)
        keep(
            what,
            count=len(found),
            killed=sum(each.killed for each in found),
            trained_again=sum(each.trained_again for each in found),
            other_answers=sum(each.answer != expected for each in found),
            **figures,
        )


@contextmanager
def disturbance(description: str | None, count: int) -> Iterator[Disturbance]:
    """What the command line asks for, beside a warmed-up process whose changes of files can be watched."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--count", type=int, default=count, help="Runs to disturb.")
    parser.add_argument("--jobs", type=int, default=1, help="Runs at once.")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    operations.preload()
    with TemporaryDirectory(prefix="loratune-faults-") as name:
        folder = Path(name)
        options = search(folder)
        warm_up(options, folder / "first")
        whole = Run(options, folder / "undisturbed" / "run")
        whole.out.parent.mkdir()
        yield Disturbance(asked.count, asked.jobs, Random(asked.seed), whole)
