"""How long the command line takes to answer: seconds of the wall (least and median of several starts) and processor.

    python bench/startup.py

Appends a row for each to bench/results/startup.csv. On a shared machine the processor's seconds count.
"""

import resource
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

from record import append, circumstances

RESULTS = Path(__file__).parent / "results" / "startup.csv"
STARTS = 10
PYTHON = {"python": ["-c", "pass"], "import loratune": ["-c", "import loratune; dir(loratune)"]}
COMMANDS = ("--version", "--help", "tune --help", "ledger --help")


def measure(arguments: list[str]) -> tuple[list[float], list[float]]:
    """(wall, processor) seconds of each start."""
    wall, processor = [], []
    for _ in range(STARTS):
        before, started = _used(), perf_counter()
        subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
        wall.append(perf_counter() - started)
        processor.append(_used() - before)
    return wall, processor


def _used() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    about = circumstances()
    lines = PYTHON | {f"loratune {each}": ["-m", "loratune", *each.split()] for each in COMMANDS}
    for what, arguments in lines.items():
        wall, processor = measure(arguments)
        print(
            f"{what}: {min(wall):.3f} s (median {median(wall):.3f}), {min(processor):.3f} s of the processor"
        )
        row = {
            "what": what,
            "starts": STARTS,
            "seconds": round(min(wall), 3),
            "median_seconds": round(median(wall), 3),
            "processor_seconds": round(min(processor), 3),
        }
        append(RESULTS, about | row)


if __name__ == "__main__":
    main()
