"""A run as a live page shows it, from its events alone: plain values for JSON, made of texts that are final.

Knows no files and no web; its caller reads the events and draws the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from json import dumps
from math import isfinite
from typing import Any

from loratune.reporting.progress import RunProgress
from loratune.reporting.tables import evidence_number
from loratune.reporting.wording import MARKS, NOTE, count, duration, money, rate, setting_words, state_of
from loratune.values import Evidence, Trial
from loratune.values.events import (
    Event,
    Findings,
    Finished,
    LiveTrial,
    Note,
    Phase,
    PhaseBegan,
    Planned,
    Progress,
    Resumed,
    Started,
    TrialEnded,
)
from loratune.values.plain import to_plain

PLACES = 10
_NOTES = 30
_POINTS = 60
"""Most training losses kept of a trial while it trains."""


class WatchedRun:
    """A subscriber of another process's events; a resumed run begins again with `Started`."""

    def __init__(self) -> None:
        self._now = 0.0
        self._begin(0.0)

    def _begin(self, now: float) -> None:
        self._began = self._last = now
        self._progress = RunProgress(lambda: self._now - self._began, places=PLACES)
        self._started: Started | None = None
        self._planned: Planned | None = None
        self._phase: Phase | None = None
        self._ended: dict[str, TrialEnded] = {}
        self._entered: dict[str, tuple[float, list[tuple[float, float]]]] = {}
        """For each trial in training: since when, and (share of the steps, training loss)."""
        self._findings: Findings | None = None
        self._finished: Finished | None = None
        self._notes: list[str] = []
        self._widest = 0

    @property
    def over(self) -> bool:
        """Whether everything is written."""
        return self._finished is not None

    @property
    def searching(self) -> bool:
        """Whether the search goes on, which can be stopped."""
        return self._phase is Phase.SEARCHING and not self.over

    def take(self, time: float, event: Event) -> None:
        """Take notice of one event; `time` in seconds since 1970."""
        if isinstance(event, Started):
            self._begin(time)
        self._now = self._last = time
        self._progress(event)
        match event:
            case Started():
                self._started = event
            case PhaseBegan(phase=phase):
                self._phase = phase
            case Planned():
                self._planned = event
                self._notes += [*event.data_notes, *event.notes]
            case Note(text=text):
                self._notes.append(text)
            case Resumed(trials=trials):
                self._ended |= {_name(each.trial): each for each in trials}
            case Progress():
                self._follow(event, time)
            case TrialEnded():
                self._ended[_name(event.trial)] = event
                self._entered.pop(_name(event.trial), None)
            case Findings():
                self._findings = event
            case Finished():
                self._finished = event
                self._forget(())
            case _:
                pass

    def _follow(self, pack: Progress, time: float) -> None:
        self._widest = max(self._widest, len(pack.trials))
        self._forget([_name(each.trial) for each in pack.trials])
        for each in pack.trials:
            _, points = self._entered.setdefault(_name(each.trial), (time - pack.seconds, []))
            if isfinite(each.loss):
                points.append((each.share, each.loss))
            if len(points) > _POINTS:
                del points[1:-1:2]

    def _forget(self, staying: Iterable[str]) -> None:
        """Trials that ended without a result."""
        self._entered = {name: self._entered[name] for name in staying if name in self._entered}

    def state(self, now: float) -> dict[str, Any]:
        """All that is shown at this time, in seconds since 1970; after the end as it was then."""
        self._now = self._last if self.over else max(now, self._last)
        progress, price = self._progress, self._progress.price_per_hour
        left = None if self.over else progress.seconds_left
        trials = max(progress.trials, progress.done)
        training = [each for each in progress.slots if _name(each.trial) in self._entered]
        return {
            "model": self._started.model if self._started else "",
            "data": self._started.data if self._started else "",
            "stage": progress.stage or ("done" if self.over else "starting"),
            "done": progress.done,
            "trials": progress.done if self.over else trials,
            "counts": self._counts(trials),
            "times": _times(self._elapsed, left, price, over=self.over),
            "speed": f"{count(progress.tokens_per_second)} tokens/s" if progress.tokens_per_second else "",
            "pack": f"{len(training)} of {max(self._widest, self._slots)}" if training else "",
            "answer": setting_words(self._findings.hyper_parameters) if self._findings else "",
            "evidence": self._evidence(),
            "leaders": self._leaders(),
            "training": [_slot(each) for each in training],
            "curves": self._curves(training),
            "lanes": self._lanes(training),
            "notes": self._notes[-_NOTES:],
        }

    @property
    def _slots(self) -> int:
        return self._planned.slots if self._planned else 0

    def _counts(self, trials: int) -> str:
        if not trials:
            return ""
        lost = self._progress.diverged
        total = "" if self.over else f" of about {trials}"
        return f"{self._progress.done}{total} trials{f', {lost} diverged' if lost else ''}"

    def _leaders(self) -> list[list[str]]:
        return [
            [str(place), *_cells(each.trial), f"{each.nll:.4f}"]
            for place, each in enumerate(self._progress.leaders.trials, 1)
        ]

    def _evidence(self) -> list[dict[str, str]]:
        """What the search has tested so far; what it leaves out is only known at its end."""
        found = [claim(state_of(each), each) for each in self._findings.evidence] if self._findings else []
        return [each for each in found if each["state"] != NOTE or self.over]

    @property
    def _elapsed(self) -> float:
        """What was before the first event, included where it is known."""
        return self._finished.seconds if self._finished else self._progress.elapsed

    def _curves(self, training: Sequence[LiveTrial]) -> list[dict[str, Any]]:
        """Validation NLL of those that have ended, training NLL of those that train; (share of the steps, nats)."""
        ended = [
            {
                "label": _label(each.trial),
                "kind": str(each.state),
                "points": [(p.fraction, p.validation_nll) for p in each.curve if isfinite(p.validation_nll)],
            }
            for each in self._ended.values()
        ]
        live = [
            {"label": _label(each.trial), "kind": "training", "points": self._entered[_name(each.trial)][1]}
            for each in training
        ]
        return [each for each in (*ended, *live) if each["points"]]

    def _lanes(self, training: Sequence[LiveTrial]) -> list[dict[str, Any]]:
        """Each trial's time in the pack, in seconds since the run began; trials of one lane never overlap."""
        spans = [
            (each.began, each.ended, _label(each.trial), str(each.state))
            for each in self._ended.values()
            if each.ended
        ]
        for each in training:
            spans.append((self._entered[_name(each.trial)][0], self._now, _label(each.trial), "training"))
        first = min((span[0] for span in spans), default=0.0)
        free: list[float] = []
        lanes = []
        for began, ended, label, kind in sorted(spans):
            lane = next((i for i, end in enumerate(free) if end <= began + 0.001), len(free))
            free[lane:] = [ended, *free[lane + 1 :]]
            lanes.append(
                {"lane": lane, "began": began - first, "ended": ended - first, "label": label, "kind": kind}
            )
        return lanes


def _name(trial: Trial) -> str:
    """Which trial it is, as far as events say."""
    return dumps(to_plain(trial), sort_keys=True)


def _times(elapsed: float, left: float | None, price: float, *, over: bool) -> str:
    def priced(seconds: float) -> str:
        cost = money(seconds, price)
        return f"{duration(seconds)}{f' ({cost})' if cost else ''}"

    return f"{priced(elapsed)} {'in all' if over else 'so far'}{'' if left is None else f', about {priced(left)} left'}"


def _cells(trial: Trial) -> list[str]:
    values = trial.hyper_parameters
    return [
        str(values.r),
        rate(values.learning_rate),
        str(values.batch_size),
        f"{values.lora_alpha:g}",
        f"{values.epochs:g}",
        str(trial.seed),
    ]


def _slot(live: LiveTrial) -> list[str]:
    loss = f"{live.loss:.3f}" if isfinite(live.loss) else "–"
    return [*_cells(live.trial), f"{live.step}/{live.total_steps}", loss]


def _label(trial: Trial) -> str:
    rows = "" if trial.fraction == 1 else f", {100 * trial.fraction:.3g} % of the rows"
    return f"{setting_words(trial.hyper_parameters)}, seed {trial.seed}{rows}"


def claim(state: str, each: Evidence) -> dict[str, str]:
    """A piece of evidence and its state, as the page shows them."""
    return {
        "mark": MARKS[state],
        "state": state,
        "kind": state.replace(" ", "-"),
        "claim": each.claim,
        "number": evidence_number(each),
    }


HEADS: dict[str, Sequence[str]] = {
    "leaders": ("place", "r", "learning rate", "batch", "alpha", "epochs", "seed", "NLL"),
    "training": ("r", "learning rate", "batch", "alpha", "epochs", "seed", "step", "train NLL"),
}
"""Headings of two tables' columns."""
