"""Studies as earlier commits wrote them, read and resumed by this one.

    python bench/faults/formats.py --commits 40 --searches 4

The last commits that changed what a study is made of each record the same trials by their own code; here they must come
back equal, and the study must go on. For some of them a whole search is killed in the middle and resumed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from place import ROOT, keep, search

from loratune.study.record import Study
from loratune.values import TrialResult

MADE_OF = (
    *("src/loratune/study", "src/loratune/study.py", "src/loratune/values.py"),
    *("src/loratune/values/trial.py", "src/loratune/values/hyperparameters.py"),
)
_RECORD = """
import importlib, json, sys
from dataclasses import fields
from pathlib import Path
import numpy as np
from loratune.values import CurvePoint, HyperParameters, Trial, TrialResult
try:
    from loratune.study.record import Study
except ImportError:
    from loratune.study import Study
study = Study.open(Path(sys.argv[1]), fingerprint={"seed": 0})
study.put_fact("calibration", {"pack": 2})
for rank in (2, 8, 32):
    values = HyperParameters(r=rank, lora_alpha=2 * rank, learning_rate=1e-3 / 3, batch_size=16)
    trial = Trial(hyper_parameters=values, seed=rank, fraction=1.0)
    facts = dict(
        asked=trial, trial=trial, nll=1 / rank, train_nll=0.3, metrics={"nll": 1 / rank}, cost=0.26, seconds=1.5,
        curve=(CurvePoint(step=10, fraction=0.5, train_nll=0.1, validation_nll=0.2),), trained_tokens=123, steps=20,
        example_nll=np.arange(5.0) / rank,
    )
    known = {each.name for each in fields(TrialResult)}
    study.record(TrialResult(**{name: value for name, value in facts.items() if name in known}))
print(json.dumps(sorted(result.asked.key for result in study.results())))
"""
_SEARCH = """
import inspect, json, sys
import loratune
known = inspect.signature(loratune.tune).parameters
options = {name: value for name, value in json.loads(sys.argv[1]).items() if name in known}
loratune.tune(**options)
"""


def commits(number: int) -> list[str]:
    """The last that changed what a study is made of, the newest first."""
    command = ["git", "log", f"-{number}", "--format=%h", "--", *MADE_OF]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()


def begin(commit: str, folder: Path, program: str, *arguments: str) -> subprocess.Popen[str]:
    """A Python program on the source of a commit."""
    source = folder / commit
    if not source.exists():
        source.mkdir()
        packed = subprocess.run(["git", "archive", commit, "src"], cwd=ROOT, capture_output=True, check=True)
        subprocess.run(["tar", "-x"], cwd=source, input=packed.stdout, check=True)
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "PYTHONPATH": str(source / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def as_recorded(result: TrialResult) -> bool:
    """Whether this is what `_RECORD` gave."""
    rank = result.trial.hyper_parameters.r
    assert result.example_nll is not None
    return (
        (result.trial.seed, result.nll, result.train_nll) == (rank, 1 / rank, 0.3)
        and result.metrics == {"nll": 1 / rank}
        and result.example_nll.tolist() == [each / rank for each in range(5)]
        and [point.validation_nll for point in result.curve] == [0.2]
        and (result.steps, result.trained_tokens, result.cost) == (20, 123, 0.26)
    )


def recorded(commit: str, folder: Path) -> str:
    """Empty, or what went wrong with the trials that a commit recorded."""
    out = folder / f"study-{commit}"
    process = begin(commit, folder, _RECORD, str(out))
    said, error = process.communicate()
    if process.returncode != 0:
        return f"could not be made: {error.strip().splitlines()[-1]}"
    study = Study.open(out, fingerprint={"seed": 0}, resume=True)
    results = study.results()
    study.close()
    if len(results) != len(json.loads(said)):
        return "other trials"
    if not all(map(as_recorded, results)) or study.get_fact("calibration") != {"pack": 2}:
        return "other values"
    return ""


def searched(commit: str, folder: Path, options: dict[str, Any]) -> str:
    """Empty, or what went wrong when this commit resumed a search that an older one had begun."""
    import loratune
    from loratune.values.events import Event, Resumed, TrialEnded

    out = folder / f"run-{commit}"
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    process = begin(commit, folder, _SEARCH, json.dumps({**plain, "out": str(out)}))
    while len(list(out.glob("trials/*.npz"))) < 2 and process.poll() is None:
        time.sleep(0.01)
    if process.poll() is not None:
        return f"could not be begun: {process.communicate()[1].strip().splitlines()[-1]}"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    told: list[Event] = []
    try:
        loratune.resume(out, on_event=told.append, progress=False)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    kept = {each.key for event in told if isinstance(event, Resumed) for each in event.trials}
    again = kept & {event.key for event in told if isinstance(event, TrialEnded)}
    return "nothing was kept" if not kept else "trained again" if again else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commits", type=int, default=40)
    parser.add_argument("--searches", type=int, default=4, help="Whole searches, of commits evenly spread.")
    arguments = parser.parse_args()
    found = commits(arguments.commits)
    with TemporaryDirectory(prefix="loratune-faults-") as name:
        folder = Path(name)
        troubles = {}
        for commit in found:
            if trouble := recorded(commit, folder):
                troubles[commit] = trouble
                print(commit, trouble, flush=True)
        keep("studies of earlier commits", count=len(found), not_read=len(troubles))
        step = max(1, (len(found) - 1) // max(1, arguments.searches - 1))
        chosen = found[::step][: arguments.searches]
        options, failed = search(folder), 0
        for commit in chosen:
            trouble = searched(commit, folder, options)
            failed += bool(trouble)
            print(commit, trouble or "resumed", flush=True)
        keep("searches of earlier commits", count=len(chosen), not_resumed=failed)


if __name__ == "__main__":
    main()
