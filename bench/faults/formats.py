"""Runs as earlier commits wrote them, read and resumed by this one; a row for each in `bench/results/formats.csv`.

    python bench/faults/formats.py --studies 40 --runs 10

The last commits that changed what a study is made of each record the same trials by their own code; here they must come
back equal. Commits spread over the history each make two runs by their own code: of a finished one page, documents and
exports are written and it is resumed, one that was killed goes on with what it had.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from place import ROOT, search

from record import append, circumstances

RESULTS = ROOT / "bench" / "results" / "formats.csv"
MADE_OF = (
    *("src/loratune/study", "src/loratune/study.py", "src/loratune/values.py"),
    *("src/loratune/values/trial.py", "src/loratune/values/hyperparameters.py"),
)
SEARCHES = ("src/loratune/tuning", "src/loratune/app/tune.py")
RANKS = (2, 8, 32)
IMPORTED = (
    "torch",
    "transformers",
    "peft",
    "optuna",
    "datasets",
    "scipy.stats",
    "sklearn.linear_model",
    "pydantic",
)
"""Loaded once: each piece of work is forked from this process, which itself knows no loratune of any commit."""


class Work:
    """A function in a child that has the source of some commit; it returns what went wrong, or nothing."""

    def __init__(self, source: Path, function: Callable[..., str], *arguments: Any) -> None:
        assert "loratune" not in sys.modules
        ours, theirs = os.pipe()
        self._pipe, self._child = ours, os.fork()
        if self._child == 0:
            sys.path.insert(0, str(source))
            try:
                os.write(theirs, function(*arguments).encode())
            except BaseException as error:
                os.write(theirs, f"{type(error).__name__}: {error}".encode()[:4000])
            finally:
                os._exit(0)
        os.close(theirs)

    def is_over(self) -> bool:
        """Whether the child has ended; only asked until it has."""
        return os.waitid(os.P_PID, self._child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def kill(self) -> None:
        os.kill(self._child, signal.SIGKILL)
        self.trouble()

    def trouble(self) -> str:
        """Its first line, when it has ended."""
        with os.fdopen(self._pipe, "rb") as pipe:
            text = pipe.read().decode()
        os.waitpid(self._child, 0)
        return text.partition("\n")[0]


def commits(*paths: str) -> list[str]:
    """Those that changed one of these, the newest first."""
    command = ["git", "log", "--format=%h", "--", *paths]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()


def source_of(commit: str, folder: Path) -> Path:
    source = folder / commit
    if not source.exists():
        source.mkdir()
        packed = subprocess.run(["git", "archive", commit, "src"], cwd=ROOT, capture_output=True, check=True)
        subprocess.run(["tar", "-x"], cwd=source, input=packed.stdout, check=True)
    return source / "src"


def write_study(out: Path) -> str:
    """Trials with known values, by whatever version of loratune this process has."""
    from dataclasses import fields

    import numpy as np

    from loratune.values import CurvePoint, HyperParameters, Trial, TrialResult

    try:
        study_class = import_module("loratune.study.record").Study
    except ImportError:
        study_class = import_module("loratune.study").Study
    study = study_class.open(out, fingerprint={"seed": 0})
    study.put_fact("calibration", {"pack": 2})
    for rank in RANKS:
        values = HyperParameters(r=rank, lora_alpha=2 * rank, learning_rate=1e-3 / 3, batch_size=16)
        trial = Trial(hyper_parameters=values, seed=rank, fraction=1.0)
        facts: dict[str, Any] = {
            "asked": trial,
            "trial": trial,
            "nll": 1 / rank,
            "train_nll": 0.3,
            "metrics": {"nll": 1 / rank},
            "cost": 0.26,
            "seconds": 1.5,
            "trained_tokens": 123,
            "steps": 20,
            "curve": (CurvePoint(step=10, fraction=0.5, train_nll=0.1, validation_nll=0.2),),
            "example_nll": np.arange(5.0) / rank,
        }
        known = {each.name for each in fields(TrialResult)}
        study.record(TrialResult(**{name: value for name, value in facts.items() if name in known}))
    return ""


def read_study(out: Path) -> str:
    """Whether it has what `write_study` gave."""
    from loratune.study.record import Study

    study = Study.open(out, fingerprint={"seed": 0}, resume=True)
    results = study.results()
    if [result.trial.hyper_parameters.r for result in results] != list(RANKS):
        return "other trials"
    for result in results:
        rank = result.trial.hyper_parameters.r
        assert result.example_nll is not None
        same = (
            (result.trial.seed, result.nll, result.train_nll) == (rank, 1 / rank, 0.3)
            and result.metrics == {"nll": 1 / rank}
            and result.example_nll.tolist() == [each / rank for each in range(5)]
            and [point.validation_nll for point in result.curve] == [0.2]
            and (result.steps, result.trained_tokens, result.cost) == (20, 123, 0.26)
        )
        if not same:
            return "other values"
    return "" if study.get_fact("calibration") == {"pack": 2} else "other facts"


def make_run(options: dict[str, Any], out: Path) -> str:
    import inspect

    import loratune

    known = inspect.signature(loratune.tune).parameters
    loratune.tune(
        **{name: value for name, value in {**options, "out": out, "progress": False}.items() if name in known}
    )
    return ""


def use_finished(out: Path) -> str:
    """All that reads a finished run; resumed, it gives the same answer and trains nothing."""
    from json import loads

    import loratune
    from loratune.app.export import export
    from loratune.app.report import facts_of
    from loratune.reporting.documents import to_json, to_markdown
    from loratune.reporting.result import load_result
    from loratune.values.events import Event, TrialEnded

    told: list[Event] = []
    page = loratune.report(out).read_text(encoding="utf-8")
    facts = facts_of(out)
    if "</html>" not in page or not loads(to_json(facts)) or not to_markdown(facts):
        return "an empty report"
    before = load_result(out).recommended
    for name in ("peft", "trl"):
        export(out, to=name, out=out.parent / f"{out.name}-{name}")
    after = loratune.resume(out, on_event=told.append, progress=False).recommended
    if any(isinstance(event, TrialEnded) for event in told):
        return "trained again"
    return "" if before == after else "another answer"


def go_on(out: Path) -> str:
    """Resume a killed run: all that it had stays, and it comes to its end."""
    import loratune
    from loratune.values.events import Event, Resumed, TrialEnded

    told: list[Event] = []
    loratune.resume(out, on_event=told.append, progress=False)
    kept = {each.key for event in told if isinstance(event, Resumed) for each in event.trials}
    again = kept & {event.key for event in told if isinstance(event, TrialEnded)}
    return "nothing was kept" if not kept else "trained again" if again else ""


def keep(what: str, commit: str, began: str, trouble: str) -> None:
    """Add a row: what an old commit could not begin says nothing of this one."""
    outcome = f"not made: {began}" if began else trouble or "read"
    print(what, commit, outcome, flush=True)
    append(RESULTS, circumstances() | {"what": what, "written by": commit, "outcome": outcome})


def studies(number: int, folder: Path) -> None:
    for commit in commits(*MADE_OF)[:number]:
        out = folder / f"study-{commit}"
        began = Work(source_of(commit, folder), write_study, out).trouble()
        keep("study", commit, began, "" if began else Work(ROOT / "src", read_study, out).trouble())


def runs(number: int, folder: Path) -> None:
    options = search(folder)
    found = commits(*SEARCHES)
    step = max(1, (len(found) - 1) // max(1, number - 1))
    for commit in found[::step][:number]:
        source, out = source_of(commit, folder), folder / f"run-{commit}"
        began = Work(source, make_run, options, out).trouble()
        keep("finished run", commit, began, "" if began else Work(ROOT / "src", use_finished, out).trouble())
        shutil.rmtree(out, ignore_errors=True)
        work = Work(source, make_run, options, out)
        while len(list(out.glob("trials/*.npz"))) < 2 and not work.is_over():
            time.sleep(0.01)
        began = work.trouble() or "it ended too soon" if work.is_over() else ""
        if not began:
            work.kill()
        keep("killed run", commit, began, "" if began else Work(ROOT / "src", go_on, out).trouble())
        shutil.rmtree(out, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--studies", type=int, default=40, help="The last commits that changed what they are made of."
    )
    parser.add_argument("--runs", type=int, default=10, help="Commits evenly spread over the history.")
    arguments = parser.parse_args()
    for name in IMPORTED:
        import_module(name)
    with TemporaryDirectory(prefix="loratune-faults-") as name:
        studies(arguments.studies, Path(name))
        runs(arguments.runs, Path(name))


if __name__ == "__main__":
    main()
