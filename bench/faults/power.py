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
from place import Run, each_of, keep, search, warm_up


def resumed(run: Run) -> tuple[int, object]:
    """Trials that it trained again, and its answer."""
    run.go()
    return run.trained_again, run.answer()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=40, help="Losses.")
    parser.add_argument("--jobs", type=int, default=1, help="Runs at once.")
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
        disk, done, told, lost = operations.Disk(whole.out.parent), 0, set[str](), list[Run]()
        for number, moment in enumerate(moments):
            for change in changes[done:moment]:
                disk.apply(change)
                if change.kind == "m":
                    told.add(change.path)
            done, place = moment, folder / f"left{number}"
            disk.leave(place, random if number % 2 else None)
            lost.append(Run(options, place / "run", told=set(told)))
        found = each_of(resumed, lost, arguments.jobs)
        keep(
            "power lost",
            count=len(moments),
            changes=len(changes),
            trained_again=sum(again for again, _ in found),
            other_answers=sum(answer != expected for _, answer in found),
        )


if __name__ == "__main__":
    main()
