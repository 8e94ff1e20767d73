"""`kill -9` before changes of files, spread over a whole run, and at random moments; resumed each time.

    python bench/faults/kills.py --count 100

Every run is a child forked from a process that has loaded everything. What counts: trials that were told as finished
and trained again, and answers other than that of an undisturbed run.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import operations
from place import Run, each_of, keep, search, warm_up


def moments(changes: int, number: int, length: float, random: Random) -> list[partial[Any] | float]:
    """Half before changes, evenly spread from the first to the last, half at any time."""
    spread = [1 + round(each * (changes - 1) / max(1, number // 2 - 1)) for each in range(number // 2)]
    times = [random.uniform(0, length) for _ in range(number - number // 2)]
    found: list[partial[Any] | float] = [partial(operations.watch, kill_at=each) for each in spread]
    return found + list(times)


def resumed(
    options: dict[str, Any], folder: Path, planned: tuple[int, partial[Any] | float]
) -> tuple[bool, int, object]:
    """Whether a run was killed at this moment, trials that it trained again, and its answer."""
    number, moment = planned
    run = Run(options, folder / f"run{number}")
    ended = run.go(until=moment) if isinstance(moment, float) else run.go(before=partial(moment, run.out))
    if ended.killed:
        run.go()
    found = ended.killed, run.trained_again, run.answer()
    run.remove()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="Kills.")
    parser.add_argument("--jobs", type=int, default=1, help="Runs at once.")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    operations.preload()
    random = Random(arguments.seed)
    with TemporaryDirectory(prefix="loratune-faults-") as name:
        folder = Path(name)
        options = search(folder)
        warm_up(options, folder / "first")
        whole = Run(options, folder / "undisturbed")
        whole.go(before=partial(operations.watch, whole.out), after=lambda: operations.count())
        expected = whole.answer()
        planned = moments(whole.returned, arguments.count, whole.seconds, random)
        found = each_of(partial(resumed, options, folder), list(enumerate(planned)), arguments.jobs)
        answers = [answer for _, _, answer in found]
        keep(
            "kill -9",
            count=sum(killed for killed, _, _ in found),
            runs=len(planned),
            changes=whole.returned,
            trained_again=sum(again for _, again, _ in found),
            other_answers=sum(answer != expected for answer in answers),
        )


if __name__ == "__main__":
    main()
