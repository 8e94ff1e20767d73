"""Losses of power: a run is logged, and what a disk would have kept of it at some moment is resumed.

    python bench/faults/power.py --count 40

Of what was not synced nothing is left, or each change with one half. No trial that was told as finished may be trained
again, and the answer must be that of the undisturbed run.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import operations
from place import Run, keep, search, warm_up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=40, help="Losses.")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    operations.preload()
    random = Random(arguments.seed)
    with TemporaryDirectory(prefix="loratune-faults-") as name:
        folder = Path(name)
        options = search(folder)
        warm_up(options, folder / "first")
        whole, log = Run(options, folder / "place" / "run"), folder / "log"
        whole.out.parent.mkdir()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        whole.go(before=partial(operations.watch, whole.out.parent, log=descriptor), mark=True)
        expected, changes = whole.answer(), operations.read(log)
        moments = sorted(random.sample(range(1, len(changes) + 1), min(arguments.count, len(changes))))
        moments[-1] = len(changes)
        disk, done, again, differing = operations.Disk(whole.out.parent), 0, 0, 0
        told: set[str] = set()
        for number, moment in enumerate(moments):
            for change in changes[done:moment]:
                disk.apply(change)
                if change.kind == "m":
                    told.add(change.path)
            done = moment
            place = folder / f"left{number}"
            disk.leave(place, random if number % 2 else None)
            run = Run(options, place / "run", told=set(told))
            run.go()
            again += run.trained_again
            if run.answer() != expected:
                differing += 1
                print("another answer", moment, run.answer(), expected)
            run.remove()
        keep(
            "power lost",
            count=len(moments),
            changes=len(changes),
            trained_again=again,
            other_answers=differing,
        )


if __name__ == "__main__":
    main()
