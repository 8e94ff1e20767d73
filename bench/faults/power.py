"""Losses of power: a run is logged, and what a disk would have kept of it at some moment is resumed.

    python bench/faults/power.py --count 40

Of what was not synced nothing is left, or each change with one half. No trial that was told as finished may be trained
again, and the answer must be that of the undisturbed run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import operations
from runs import Disturbance, Outcome, Run, disturbance


def resumed(run: Run) -> Outcome:
    """What becomes of what is left."""
    run.go()
    return run.outcome()


def left(runs: Disturbance, changes: list[operations.Change]) -> Iterator[Run]:
    """Runs as the disk has them after some of the changes, the last time after all."""
    moments = sorted(runs.random.sample(range(1, len(changes) + 1), min(runs.count, len(changes))))
    moments[-1] = len(changes)
    disk, done, told = operations.Disk(runs.whole.out.parent), 0, set[str]()
    for number, moment in enumerate(moments):
        for change in changes[done:moment]:
            disk.apply(change)
            if change.kind == "m":
                told.add(change.path)
        done, run = moment, runs.run(f"left{number}", told)
        disk.leave(run.out.parent, runs.random if number % 2 else None)
        yield run


def main() -> None:
    with disturbance(__doc__, count=40) as runs:
        place = runs.whole.out.parent
        log = Path(f"{place}.log")
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        runs.whole.go(before=partial(operations.watch, place, log=descriptor), mark=True)
        changes = operations.read(log)
        runs.keep("power lost", resumed, list(left(runs, changes)), changes=len(changes))


if __name__ == "__main__":
    main()
