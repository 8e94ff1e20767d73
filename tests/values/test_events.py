"""Events are values: frozen, picklable, and JSON with nothing in it that JSON lacks."""

import pickle
from dataclasses import FrozenInstanceError, fields, is_dataclass
from json import loads
from math import inf, nan
from typing import Any

import pytest

from loratune.values import Trial, TrialResult, TrialState, default_recipe, events
from loratune.values.events import (
    Bus,
    Chosen,
    Event,
    Finished,
    LiveTrial,
    Note,
    Phase,
    PhaseBegan,
    Prepared,
    Progress,
    Resumed,
    StageBegan,
    Started,
    TrialEnded,
    event_name,
    json_line,
)

TRIAL = Trial(hyper_parameters=default_recipe(), seed=3)
DIVERGED = TrialEnded.of(
    TrialResult(asked=TRIAL, trial=TRIAL, state=TrialState.DIVERGED, message="loss is NaN")
)
EXAMPLES: list[Event] = [
    Started(command="tune", model="m", data="d"),
    PhaseBegan(phase=Phase.CALIBRATING),
    Note(text="two\nlines"),
    StageBegan(name="alpha", trials=2),
    Progress(
        trials=(LiveTrial(trial=TRIAL, step=1, total_steps=4, loss=nan),),
        steps=1,
        tokens=5,
        seconds=0.5,
        occupancy=1.0,
    ),
    Prepared(
        kernels=3,
        kernel_seconds=0.5,
        recordings=0,
        recording_seconds=0.0,
        broken_off=0,
        compiled=1,
        compile_seconds=2.0,
    ),
    DIVERGED,
    Resumed(trials=(DIVERGED,)),
    Chosen(hyper_parameters=default_recipe(), settled=True),
    Finished(directory="runs/a", seconds=1.0),
]


@pytest.mark.parametrize("event", EXAMPLES, ids=event_name)
def test_an_event_is_a_value(event: Event) -> None:
    assert is_dataclass(event)
    assert pickle.loads(pickle.dumps(event)) == event or isinstance(event, Progress)  # NaN is no other NaN
    with pytest.raises((FrozenInstanceError, AttributeError)):
        setattr(event, fields(event)[0].name, None)


@pytest.mark.parametrize("event", EXAMPLES, ids=event_name)
def test_it_is_one_line_of_strict_json(event: Event) -> None:
    def refuse(name: str) -> Any:
        raise AssertionError(f"{name} is no JSON")

    line = json_line(event)
    assert line.count("\n") == 1
    values = loads(line, parse_constant=refuse)
    assert values["event"] == event_name(event)
    assert values["time"] > 1.7e9
    assert set(values) == {"event", "time", *(each.name for each in fields(event))}


def test_numbers_that_are_not_finite_are_null() -> None:
    assert DIVERGED.nll == inf
    assert loads(json_line(DIVERGED))["nll"] is None
    assert loads(json_line(EXAMPLES[4]))["trials"][0]["loss"] is None


def test_names_are_the_words_of_the_class() -> None:
    assert event_name(DIVERGED) == "trial ended"
    kinds = [kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, Event)]
    assert len({kind.__name__ for kind in kinds}) == len(kinds)


def test_the_bus_tells_everyone_in_order() -> None:
    told: list[tuple[str, Event]] = []
    bus = Bus(lambda event: told.append(("a", event)))
    bus(EXAMPLES[0])
    bus.subscribe(lambda event: told.append(("b", event)))
    bus(EXAMPLES[1])
    assert told == [("a", EXAMPLES[0]), ("a", EXAMPLES[1]), ("b", EXAMPLES[1])]
