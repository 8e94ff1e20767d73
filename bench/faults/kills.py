"""`kill -9` before changes of files, spread over a whole run, and at random moments; resumed each time.

    python bench/faults/kills.py --count 100

Every run is a child forked from a process that has loaded everything. What counts: trials that were told as finished
and trained again, and answers other than that of an undisturbed run.
"""

from __future__ import annotations

from functools import partial
from random import Random

import operations
from runs import Outcome, Run, disturbance


def moments(changes: int, number: int, length: float, random: Random) -> list[int | float]:
    """Half before changes, evenly spread from the first to the last, half after any number of seconds."""
    half = number // 2
    spread = [1 + round(each * (changes - 1) / max(1, half - 1)) for each in range(half)]
    return [*spread, *(random.uniform(0, length) for _ in range(number - half))]


def resumed(planned: tuple[Run, int | float]) -> Outcome:
    """A run that was killed before this change, or after this many seconds."""
    run, moment = planned
    if isinstance(moment, int):
        killed = run.go(before=partial(operations.watch, run.out, kill_at=moment))
    else:
        killed = run.go(until=moment)
    if killed:
        run.go()
    return run.outcome(killed)


def main() -> None:
    with disturbance(__doc__, count=100) as runs:
        whole = runs.whole
        whole.go(before=partial(operations.watch, whole.out), after=operations.count)
        planned = moments(whole.returned, runs.count, whole.seconds, runs.random)
        items = [(runs.run(f"run{number}"), moment) for number, moment in enumerate(planned)]
        runs.keep("kill -9", resumed, items, changes=whole.returned)


if __name__ == "__main__":
    main()
