"""A wall clock that is another one at every look, by up to ten years: what a run does, and one that resumes it.

python bench/faults/clock.py --count 6
"""

from __future__ import annotations

from functools import partial

import operations
from runs import Outcome, Run, disturbance


def resumed(planned: tuple[Run, float | None]) -> Outcome:
    """One run under that clock, killed at a moment where there is one."""
    run, moment = planned
    jumping = partial(operations.jump, True)
    killed = run.go(before=jumping, until=moment)
    if killed:
        run.go(before=jumping)
    return run.outcome(killed)


def main() -> None:
    with disturbance(__doc__, count=6) as runs:
        runs.whole.go()
        seconds = runs.whole.seconds
        planned = [
            (runs.run(f"run{number}"), runs.random.uniform(0, seconds) if number % 2 else None)
            for number in range(runs.count)
        ]
        runs.keep("jumping clock", resumed, planned)


if __name__ == "__main__":
    main()
