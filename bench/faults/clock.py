"""A wall clock that is another one at every look, by up to ten years: what a run does, and one that resumes it.

python bench/faults/clock.py --count 6
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import operations
from place import Run, keep, search, warm_up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--count", type=int, default=6, help="Runs, of which every other is killed and resumed."
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    operations.preload()
    random = Random(arguments.seed)
    with TemporaryDirectory(prefix="loratune-faults-") as name:
        folder = Path(name)
        options = search(folder)
        warm_up(options, folder / "first")
        whole = Run(options, folder / "undisturbed")
        whole.go()
        expected, again, differing = whole.answer(), 0, 0
        for number in range(arguments.count):
            run, jumping = Run(options, folder / f"run{number}"), partial(operations.jump, True)
            if number % 2:
                run.go(before=jumping, until=random.uniform(0, whole.seconds))
            run.go(before=jumping)
            again += run.trained_again
            differing += run.answer() != expected
            run.remove()
        keep("jumping clock", count=arguments.count, trained_again=again, other_answers=differing)


if __name__ == "__main__":
    main()
