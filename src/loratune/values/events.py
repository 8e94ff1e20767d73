"""What happens while a command works, as frozen values: all that a reporter ever learns of it.

A reporter is a function of one event. Terminal, plain log, JSON lines and `events.jsonl` receive the same ones, and
a worker elsewhere can send them: they hold no live object, and `event_values` makes JSON of each.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from json import dumps
from math import inf, nan
from time import time
from typing import Any, Self, cast

from loratune.values.decision import Evidence, SearchPlan
from loratune.values.hyperparameters import HyperParameters
from loratune.values.plain import adapter, finite, from_plain
from loratune.values.profile import DataProfile, ModelProfile
from loratune.values.trial import CurvePoint, Stage, Trial, TrialResult, TrialState


class Phase(StrEnum):
    """What a command is at, in the order in which it comes."""

    LOADING = "loading"
    CALIBRATING = "calibrating"
    SEARCHING = "searching"
    ANALYSING = "analysing"
    FINAL_RUN = "final run"
    TESTING = "testing"
    """What was trained and the base model on the test rows."""
    WRITING = "writing"


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that happened."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Started(Event):
    """A command begins, or resumes what an earlier one has begun."""

    command: str
    model: str
    data: str
    directory: str = ""
    """Where its results will be; empty where it writes none."""
    resumed: bool = False
    version: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseBegan(Event):
    """It lasts until the next one, or until `Finished`."""

    phase: Phase


@dataclass(frozen=True, kw_only=True, slots=True)
class Note(Event):
    """One sentence for people."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned(Event):
    """The priced plan, before anything is trained."""

    data: DataProfile
    model: ModelProfile
    plan: SearchPlan
    slots: int
    """Trials that train side by side, at most."""
    peak_bytes: int
    memory_bytes: int
    """What the device offers."""
    search_seconds: float
    final_seconds: float
    """The final run, and what is done with the largest adapter of the search before it."""
    final_run_seconds: float
    """The final run alone."""
    test_seconds: float
    """The part of it that follows the last step."""
    final_trials: int = 2
    """The recommended one and the default recipe."""
    after_seconds: float = 0.0
    """The part of `final_seconds` that the plan's stages name: trials between the search and the final run."""
    price_per_hour: float = 0.0
    """Price of the machine, in the user's currency; 0 where it is not known."""
    data_notes: tuple[str, ...] = ()
    """What became of the rows, a sentence each."""
    notes: tuple[str, ...] = ()
    """What to know of the time, a sentence each."""
    devices: int = 1
    """Devices that trials are shared out over; slots and bytes are of each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageBegan(Event):
    """A question of the search, or another part of the run; again where it goes on with `trials` more."""

    name: str
    trials: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveTrial:
    """A trial while it trains."""

    trial: Trial
    step: int
    total_steps: int
    loss: float
    """Loss of the last step, nats per supervised token."""

    @property
    def share(self) -> float:
        """Share of its steps that are done."""
        return self.step / max(1, self.total_steps)


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress(Event):
    """A pack has taken steps; published a few times a second at most."""

    trials: tuple[LiveTrial, ...]
    """Trials that train side by side now."""
    steps: int
    """Since the last such event."""
    tokens: int
    """Real (unpadded) ones trained in them."""
    seconds: float
    """Time that they took."""
    occupancy: float
    """Mean number of trials in the pack during them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared(Event):
    """What a GPU's steps need was made at first use: since the last such event, with its seconds, which are part of the
    steps'. Those of compiling may lie within those of a recording."""

    kernels: int
    """Kernels compiled, or loaded from a cache."""
    kernel_seconds: float
    recordings: int
    """CUDA graphs recorded."""
    recording_seconds: float
    broken_off: int
    """Recordings that came to nothing."""
    compiled: int
    """Forms of layers and losses compiled, or loaded from a cache."""
    compile_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialEnded(Event):
    """What came of a trial, without the values of single rows, which the study keeps."""

    key: str
    trial: Trial
    state: TrialState
    nll: float = inf
    """NLL on all validation rows; infinite where it diverged."""
    train_nll: float = inf
    metrics: Mapping[str, float] = field(default_factory=dict)
    curve: tuple[CurvePoint, ...] = ()
    steps: int = 0
    trained_tokens: int = 0
    cost: float = 0.0
    seconds: float = 0.0
    began: float = 0.0
    """Seconds since 1970, as `ended`; 0 where they are not known."""
    ended: float = 0.0
    message: str = ""

    @classmethod
    def of(cls, result: TrialResult) -> Self:
        """The event for a result."""
        return cls(
            key=result.asked.key,
            trial=result.trial,
            state=result.state,
            nll=result.nll,
            train_nll=result.train_nll,
            metrics=dict(result.metrics),
            curve=result.curve,
            steps=result.steps,
            trained_tokens=result.trained_tokens,
            cost=result.cost,
            seconds=result.seconds,
            began=result.began,
            ended=result.ended,
            message=result.message,
        )

    @property
    def finished(self) -> bool:
        """Whether it reached its end with finite numbers."""
        return self.state is TrialState.COMPLETE

    @property
    def final(self) -> bool:
        """Whether it is one of the final run."""
        return self.trial.stage is Stage.FINAL


@dataclass(frozen=True, kw_only=True, slots=True)
class Resumed(Event):
    """The trials of the search that earlier runs have finished."""

    trials: tuple[TrialEnded, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings(Event):
    """What the results so far show; each takes the place of the one before."""

    hyper_parameters: HyperParameters
    """The answer if the search ended now."""
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen(Event):
    """The search has come to an answer."""

    hyper_parameters: HyperParameters
    settled: bool
    """Whether the search has nothing more to ask."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished(Event):
    """Everything is written."""

    directory: str
    seconds: float
    cut: bool = False
    """Whether the budget's clock cut the search, or the user."""
    stopped: bool = False
    """Whether it was the user."""


Tell = Callable[[Event], None]
"""Where events go: a reporter, or the bus of many."""


def discard(event: Event) -> None:
    """A subscriber that discards every event."""


class Bus:
    """Tells every subscriber, in the order in which they came; itself a `Tell`."""

    def __init__(self, *subscribers: Tell) -> None:
        self._subscribers = list(subscribers)

    def subscribe(self, subscriber: Tell) -> None:
        """Subscribe from the next event on."""
        self._subscribers.append(subscriber)

    def __call__(self, event: Event) -> None:
        for subscriber in tuple(self._subscribers):
            subscriber(event)


def event_name(event: Event) -> str:
    """`trial ended` for `TrialEnded`."""
    return _words(type(event))


def _words(kind: type[Event]) -> str:
    words = "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in kind.__name__)
    return words.strip()


def event_values(event: Event) -> dict[str, Any]:
    """The event as JSON values, its name under `event`; numbers that are not finite as None."""
    values: dict[str, Any] = finite(adapter(cast(Hashable, type(event))).dump_python(event, mode="json"))
    return {"event": event_name(event), **values}


def json_line(event: Event) -> str:
    """The event as one line of JSON, its end included; `time` is in seconds since 1970."""
    return dumps({"time": round(time(), 3), **event_values(event)}, allow_nan=False) + "\n"


_INFINITE = frozenset({"nll", "train_nll", "validation_nll", "loss"})
"""Numbers that JSON has as None where they are not finite: what diverged has no loss."""


def event_from(values: Mapping[str, Any]) -> Event | None:
    """Inverse of `event_values`; None for what is no event of this version."""
    kind = _kinds().get(str(values.get("event")))
    if kind is None:
        return None
    try:
        plain = {name: value for name, value in values.items() if name not in ("event", "time")}
        event: Event = from_plain(kind, _infinite(plain))
    except Exception:  # whatever decoding makes of what another version, or nobody, has written
        return None
    return event


@cache
def _kinds() -> dict[str, type[Event]]:
    return {_words(kind): kind for kind in Event.__subclasses__()}


def _infinite(value: Any, name: str = "") -> Any:
    """Inverse of `finite` where None is no value; ends of intervals are infinite too, values of metrics unknown."""
    if isinstance(value, dict):
        inner = {key: _infinite(each, str(key)) for key, each in value.items()}
        return (
            {key: nan if each is None else each for key, each in inner.items()}
            if name == "metrics"
            else inner
        )
    if isinstance(value, list):
        if name == "interval" and len(value) == 2:
            return [-inf if value[0] is None else value[0], inf if value[1] is None else value[1]]
        return [_infinite(each) for each in value]
    return inf if value is None and name in _INFINITE else value
