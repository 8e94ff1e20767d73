"""`kill -9` at random moments of a run, resumed each time: what was trained twice, and whether the answer is the same.

    python bench/faults/kills.py --count 100

Every run is a child forked from a process that has loaded everything, so that most kills fall into the work itself.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
import traceback
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from place import keep, search

import loratune
from loratune.costs import measuring
from loratune.reporting.result import load_result
from loratune.study.record import Study


def run(options: dict[str, Any], until: float | None) -> tuple[bool, float]:
    """Train in a child; kill it after `until` seconds. Whether it was killed, and how long it took."""
    began, child = time.monotonic(), os.fork()
    if child == 0:
        code = 1
        try:
            loratune.tune(**options, resume=options["out"].exists())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        passed = time.monotonic() - began
        if done:
            if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status) != 0:
                raise RuntimeError(f"a run ended with {status}")
            return os.WIFSIGNALED(status), passed
        if until is not None and passed > until:
            os.kill(child, signal.SIGKILL)
            until = None
        time.sleep(0.002)


def trained(out: Path) -> dict[str, int]:
    """When each recorded trial was written, by key."""
    study = Study.find(out, reading=True) if (out / "study.db").exists() else None
    keys = [result.asked.key for result in study.results()] if study else []
    return {key: (out / "trials" / f"{key}.npz").stat().st_mtime_ns for key in keys}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20, help="Kills.")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random = Random(arguments.seed)
    measuring.SECONDS = 0.05
    with TemporaryDirectory(prefix="loratune-faults-") as name:
        folder = Path(name)
        options = search(folder)
        _, length = run({**options, "out": folder / "undisturbed"}, None)
        expected = load_result(folder / "undisturbed").recommended
        killed = again = differing = runs = 0
        while killed < arguments.count:
            out = folder / f"run{runs}"
            runs += 1
            disturbed = True
            while disturbed:
                before = trained(out)
                until = random.uniform(0, length) if killed < arguments.count else None
                disturbed, _ = run({**options, "out": out}, until)
                killed += disturbed
                after = trained(out)
                again += sum(after.get(key) != when for key, when in before.items())
            differing += load_result(out).recommended != expected
        keep("kill -9", count=killed, runs=runs, trained_again=again, other_answers=differing)


if __name__ == "__main__":
    main()
