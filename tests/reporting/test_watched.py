"""What a live page tells of a run, from its events alone."""

from math import inf

import pytest

from loratune.reporting.watched import WatchedRun
from loratune.values import CurvePoint, Evidence, Trial, TrialState
from loratune.values.events import (
    Event,
    Findings,
    Finished,
    LiveTrial,
    Note,
    Phase,
    PhaseBegan,
    Progress,
    Resumed,
    StageBegan,
    Started,
    TrialEnded,
)
from report_fixture import OURS
from study_fixture import make_result

STARTED = Started(command="tune", model="<b>tiny</b>", data="train.jsonl", directory="run")


def trial(seed: int) -> Trial:
    return Trial(hyper_parameters=OURS, seed=seed)


def pack(*seeds: int, step: int = 1, loss: float = 2.5) -> Progress:
    live = tuple(LiveTrial(trial=trial(seed), step=step, total_steps=4, loss=loss) for seed in seeds)
    return Progress(trials=live, steps=1, tokens=100, seconds=2.0, occupancy=float(len(seeds)))


def ended(seed: int, began: float, at: float, nll: float = 0.5) -> TrialEnded:
    state = TrialState.COMPLETE if nll < inf else TrialState.DIVERGED
    curve = (CurvePoint(step=2, fraction=0.5, train_nll=1.0, validation_nll=2 * nll),)
    curve += (CurvePoint(step=4, fraction=1.0, train_nll=1.0, validation_nll=nll),)
    one = trial(seed)
    return TrialEnded.of(
        make_result(asked=one, trial=one, nll=nll, curve=curve, state=state, began=began, ended=at)
    )


def told(*events: tuple[float, Event]) -> WatchedRun:
    run = WatchedRun()
    for when, event in events:
        run.take(when, event)
    return run


def test_a_run_that_goes_on() -> None:
    """Two trials have sat in one lane, one after the other; one trains beside them and has a curve of its losses."""
    run = told(
        (100.0, STARTED),
        (101.0, PhaseBegan(phase=Phase.SEARCHING)),
        (101.0, StageBegan(name="rank and learning rate", trials=3)),
        (110.0, pack(0, 2)),
        (120.0, ended(0, 104.0, 120.0, nll=0.7)),
        (128.0, pack(1, 2, step=2, loss=2.0)),
        (130.0, ended(1, 120.0, 130.0, nll=0.5)),
        (132.0, pack(2, step=3, loss=1.5)),
    )
    state = run.state(140.0)
    assert (state["done"], state["trials"], state["stage"]) == (2, 3, "rank and learning rate")
    assert state["times"] == "40 s so far"
    assert state["pack"] == "1 of 2"
    assert state["speed"] == "50 tokens/s"
    assert [row[-1] for row in state["leaders"]] == ["0.5000", "0.7000"]
    assert [row[-2:] for row in state["training"]] == [["3/4", "1.500"]]
    curves = {each["kind"]: each["points"] for each in state["curves"]}
    assert curves["complete"] == [(0.5, 1.0), (1.0, 0.5)]
    assert curves["training"] == [(0.25, 2.5), (0.5, 2.0), (0.75, 1.5)]
    spans = [(each["lane"], each["began"], each["ended"], each["kind"]) for each in state["lanes"]]
    assert spans == [(0, 0.0, 16.0, "complete"), (1, 4.0, 36.0, "training"), (0, 16.0, 26.0, "complete")]


def test_evidence_takes_the_place_of_earlier_evidence() -> None:
    note, claim = Evidence(claim="left out"), Evidence(claim="as good", value=0.1, unit="nats", holds=True)
    run = told((1.0, STARTED))
    assert run.state(1.0)["evidence"] == []
    run.take(2.0, Findings(hyper_parameters=OURS, evidence=(Evidence(claim="no", holds=False),)))
    run.take(3.0, Findings(hyper_parameters=OURS, evidence=(note, claim)))
    state = run.state(3.0)
    assert [(each["claim"], each["state"], each["number"]) for each in state["evidence"]] == [
        ("as good", "yes", "0.1 nats")
    ]
    assert state["answer"] == "rank 8, learning rate 1e-3, batch size 16, alpha 16"


def test_what_diverged_has_no_points_and_no_place() -> None:
    state = told((1.0, STARTED), (5.0, ended(0, 2.0, 5.0, nll=inf))).state(9.0)
    assert state["counts"] == "1 of about 1 trials, 1 diverged"
    assert (state["curves"], state["leaders"]) == ([], [])
    assert state["lanes"][0]["kind"] == "diverged"


def test_a_later_part_of_a_run_begins_anew_with_what_is_finished() -> None:
    run = told((1.0, STARTED), (2.0, Note(text="first")), (3.0, pack(5)), (4.0, ended(0, 2.0, 4.0)))
    run.take(50.0, STARTED)
    run.take(51.0, Resumed(trials=(ended(0, 2.0, 4.0),)))
    state = run.state(60.0)
    assert (state["done"], state["notes"], state["times"]) == (1, [], "10 s so far")
    assert not state["training"]


@pytest.mark.parametrize("cut", [False, True])
def test_after_the_end_nothing_moves(cut: bool) -> None:
    run = told((1.0, STARTED), (3.0, pack(5)), (9.0, Finished(directory="run", seconds=12.0, cut=cut)))
    assert run.over
    assert not run.searching
    assert run.state(1000.0) == run.state(2000.0)
    assert run.state(1000.0)["times"] == "12 s in all"


def test_before_the_first_event() -> None:
    state = WatchedRun().state(5.0)
    assert (state["stage"], state["counts"]) == ("starting", "")
