"""Events read back while they are written: each once, as they were told, whatever else stands in the file."""

from json import dumps
from math import inf
from pathlib import Path

from loratune.study.events import FILE, EventLog, EventTail
from loratune.values import CurvePoint, Evidence, TrialState
from loratune.values.events import (
    Event,
    Findings,
    Finished,
    LiveTrial,
    Phase,
    PhaseBegan,
    Progress,
    Resumed,
    StageBegan,
    TrialEnded,
    event_from,
    event_values,
)
from study_fixture import make_result

LOST = make_result(
    rank=1,
    state=TrialState.DIVERGED,
    nll=inf,
    train_nll=inf,
    metrics={},
    curve=(CurvePoint(step=5, fraction=0.1, train_nll=9.0, validation_nll=inf),),
    example_nll=None,
    example_scores={},
)
BOUND = Evidence(
    claim="rank 8 is as good", value=0.001, unit="nats", interval=(-inf, 0.004), margin=0.005, holds=True
)
EVENTS: tuple[Event, ...] = (
    PhaseBegan(phase=Phase.SEARCHING),
    StageBegan(name="rank", trials=3),
    Progress(
        trials=(LiveTrial(trial=make_result().trial, step=1, total_steps=4, loss=2.5),),
        steps=1, tokens=9, seconds=0.5, occupancy=1.0,
    ),
    TrialEnded.of(make_result()),
    TrialEnded.of(LOST),
    Resumed(trials=(TrialEnded.of(LOST),)),
    Findings(hyper_parameters=make_result().trial.hyper_parameters, evidence=(BOUND, Evidence(claim="a note"))),
    Finished(directory="run", seconds=1.0),
)  # fmt: skip


def test_an_event_comes_back_equal() -> None:
    for event in EVENTS:
        assert event_from(event_values(event)) == event
    assert event_from({"event": "of another version"}) is None
    assert event_from({"event": "finished", "directory": 5}) is None


def test_new_events_come_once(tmp_path: Path) -> None:
    tail = EventTail(tmp_path)
    with EventLog() as log:
        log.open(tmp_path)
        for number, event in enumerate(EVENTS):
            log(event)
            other, found = tail.new()
            assert [each for _, each in found] == [event]
            assert other is (number == 0)
    assert tail.new() == (False, [])


def test_half_a_line_waits_and_what_is_no_event_is_passed_over(tmp_path: Path) -> None:
    file, tail = tmp_path / FILE, EventTail(tmp_path)
    line = dumps({"time": 5.0, **event_values(EVENTS[0])})
    file.write_text(f"[1]\n{{}}\nnull\n\xff\n{'[' * 9000}\n{line}\n" + line[:20])
    assert tail.new() == (True, [(5.0, EVENTS[0])])
    with file.open("a") as more:
        more.write(line[20:] + "\n")
    assert tail.new() == (False, [(5.0, EVENTS[0])])


def test_another_file_is_read_from_its_start(tmp_path: Path) -> None:
    line, tail = dumps({"time": 5.0, **event_values(EVENTS[0])}) + "\n", EventTail(tmp_path)
    (tmp_path / FILE).write_text(2 * line)
    assert len(tail.new()[1]) == 2
    (tmp_path / FILE).write_text(line)
    assert tail.new() == (True, [(5.0, EVENTS[0])])
