"""The one seam between a run and its trackers: a subscriber of events, with a thread for each library.

A slow tracker delays nothing, and one that fails is a note: no run ends because a tracker does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from math import isfinite
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Any, Self

from loratune.files.read_json import parse_json
from loratune.trackers.tracker import TrackedAnswer, TrackedRun, TrackedTrial, Tracker, Value
from loratune.values import HyperParameters
from loratune.values.events import (
    Event,
    Finished,
    Note,
    Phase,
    PhaseBegan,
    Resumed,
    Started,
    Tell,
    TrialEnded,
)

_PATIENCE = 60.0
"""Seconds that a tracker has for what is left when the run has ended."""
_FILES = {"adapter": "adapter", "report": "report.html", "result": "result.json"}


class Tracking:
    """Tells one tracker; enter it before the first event and leave it after the last."""

    def __init__(
        self,
        name: str,
        tracker: Tracker,
        config: Mapping[str, Value],
        tell: Tell,
        *,
        hide: Callable[[str], str] = str,
        patience: float = _PATIENCE,
    ) -> None:
        """`config`: of the run; `tell`: where notes go; `hide` takes secrets out of a message."""
        self._name, self._tracker, self._config = name, tracker, config
        self._tell, self._hide, self._patience = tell, hide, patience
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = Thread(target=self._serve, name=f"loratune-{name}", daemon=True)
        self._directory = Path()
        self._began = False
        self._trials = 0
        self._failure = ""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits for what is left, for a while; an interrupted run waits for nothing."""
        self._work.put(self._tracker.close)
        self._work.put(None)
        self._thread.join(self._patience if error is None else 1.0)
        if self._thread.is_alive() and error is None:
            self._tell(
                Note(
                    text=f"--report-to {self._name} has not received everything within {self._patience:g} s."
                )
            )
        self._report_failure()

    def __call__(self, event: Event) -> None:
        """Take notice of one event."""
        self._report_failure()
        match event:
            case Started(directory=directory):
                self._directory = Path(directory)
            case PhaseBegan(phase=Phase.SEARCHING | Phase.FINAL_RUN) if not self._began:
                self._began = True
                run = TrackedRun(name=self._directory.name, config=self._config, folder=self._directory)
                self._work.put(partial(self._tracker.begin, run))
            case Resumed(trials=trials):
                for each in trials:
                    self._track(each)
            case TrialEnded():
                self._track(event)
            case Finished():
                self._work.put(self._answer)
            case _:
                pass

    def _track(self, ended: TrialEnded) -> None:
        self._work.put(partial(self._tracker.trial, tracked(ended, self._trials)))
        self._trials += 1

    def _answer(self) -> None:
        self._tracker.answer(answer_of(self._directory))

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            if self._failure and work != self._tracker.close:
                continue
            try:
                with redirect_stdout(StringIO()):  # stdout is for documents; what they say there is not ours
                    work()
            except (Exception, SystemExit) as error:  # a library's own affair, whatever it is
                reason = self._hide(str(error).strip().partition("\n")[0][:300])
                self._failure = self._failure or f"{type(error).__name__}: {reason}"

    def _report_failure(self) -> None:
        """Report a failure, once, in the run's own thread."""
        if self._failure and self._failure != _REPORTED:
            text = f"--report-to {self._name} failed and is left out from here on ({self._failure}); the run continues."
            self._failure = _REPORTED
            self._tell(Note(text=text))


_REPORTED = "reported"


def tracked(ended: TrialEnded, number: int) -> TrackedTrial:
    """A trial as trackers take it."""
    trial = ended.trial
    curve = tuple(
        (point.step, _finite({"validation/nll": point.validation_nll, "train/nll": point.train_nll}))
        for point in ended.curve
    )
    metrics = {**ended.metrics, "nll": ended.nll, "train_nll": ended.train_nll, "seconds": ended.seconds}
    return TrackedTrial(
        name=f"trial-{number:03d}-{ended.key[:6]}",
        parameters={
            **parameters_of(trial.hyper_parameters),
            "seed": trial.seed,
            "rows": trial.fraction,
            "stage": str(trial.stage),
            "state": str(ended.state),
        },
        curve=tuple((step, values) for step, values in curve if values),
        metrics=_finite(metrics),
        began=ended.began,
        ended=ended.ended,
        finished=ended.finished,
    )


def parameters_of(values: HyperParameters) -> dict[str, Value]:
    """Lists as text, as trackers sort by numbers and texts."""
    return flat(values.to_dict())


def flat(values: Mapping[str, Any]) -> dict[str, Value]:
    """Numbers and texts; lists joined, what is unset left out, switches as texts."""
    found: dict[str, Value] = {}
    for name, value in values.items():
        if isinstance(value, bool):
            found[name] = str(value).lower()
        elif isinstance(value, int | float | str):
            found[name] = value
        elif isinstance(value, Mapping):
            found[name] = ",".join(f"{key}={each}" for key, each in value.items())
        elif isinstance(value, Sequence) and value:
            found[name] = ",".join(map(str, value))
    return found


def answer_of(directory: Path) -> TrackedAnswer:
    """What `result.json` says, whose keys are fixed."""
    result = parse_json((directory / "result.json").read_text(encoding="utf-8"))
    metrics = {
        f"{split}/{name}": value
        for split in ("validation", "test")
        for name, value in result["metrics"][split].items()
    }
    cost = {f"cost/{name}": value for name, value in result["cost"].items() if isinstance(value, int | float)}
    return TrackedAnswer(
        parameters=flat(result["recommended"]),
        metrics=_finite({**metrics, **cost}),
        files={name: str(directory / file) for name, file in _FILES.items() if (directory / file).exists()},
    )


def _finite(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if value is not None and isfinite(value)}
