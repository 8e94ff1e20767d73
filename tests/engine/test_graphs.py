"""Which micro-batches are recorded and which recordings stay: without a GPU, a plain call stands in for a graph."""

from collections.abc import Sequence
from itertools import count

import numpy as np
import pytest
import torch

from failing import failing
from loratune.engine import graphs as subject
from loratune.engine.graphs import Body, Graphs
from loratune.kernels import first_use

KIND = "kind"


class Call:
    """Replays by calling the body on the recorded inputs."""

    def __init__(self, body: Body, inputs: Sequence[torch.Tensor], output: torch.Tensor) -> None:
        self.body, self.inputs, self.output = body, inputs, output

    def replay(self) -> None:
        self.output.copy_(self.body(self.inputs))


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes recorded so far."""
    sizes: list[int] = []

    def record(self: Graphs, body: Body, inputs: Sequence[torch.Tensor]) -> subject._Recorded:
        own = tuple(each.clone() for each in inputs)
        output = torch.zeros_like(own[0])
        sizes.append(len(own[0]))
        return subject._Recorded(Call(body, own, output), own, output)  # type: ignore[arg-type]

    monkeypatch.setattr(Graphs, "_record", record)
    return sizes


def run(graphs: Graphs, size: int, kind: str = KIND) -> None:
    """Doubling, whose answer is known."""
    given = torch.rand(size)
    found = graphs.run((kind, size), lambda tensors: tensors[0] * 2, [given], kind=kind, tokens=size)
    assert torch.equal(found, given * 2)


def test_a_shape_is_recorded_once_after_a_first_pass_of_its_kind(recorded: list[int]) -> None:
    graphs = Graphs(parameters=0)
    for size in (8, 8, 8, 6, 6):
        run(graphs, size)
    assert recorded == [8, 6]
    run(graphs, 8, "other")
    assert recorded == [8, 6], "a new kind is compiled first"


def test_a_larger_shape_than_any_begins_anew(recorded: list[int]) -> None:
    """Blocks of a pool serve smaller shapes only; beside them a larger one would take its memory twice."""
    graphs = Graphs(parameters=0)
    for size in (4, 4, 8, 4, 8):
        run(graphs, size)
    assert recorded == [4, 8, 4]


def test_the_shape_not_used_for_longest_makes_room(
    recorded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "_LARGEST_COUNT", 2)
    graphs = Graphs(parameters=0)
    for size in (9, 9, 8, 9, 7, 9, 8):
        run(graphs, size)
    assert recorded == [9, 8, 7, 8]


def test_recordings_that_gave_way_are_made_again_a_few_times(
    recorded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One larger step must not leave all later ones without; steps that never fit beside them may."""
    monkeypatch.setattr(subject, "_SHORTAGES", 2)
    graphs = Graphs(parameters=0)
    assert not graphs.give_way(), "there was nothing to give back"
    graphs.go_on()
    for size in (8, 8):
        run(graphs, size)
    assert graphs.give_way()
    assert not graphs.takes(8), "or the step for whose sake it was would find no room again"
    graphs.go_on()
    assert graphs.takes(8)
    run(graphs, 8)
    assert recorded == [8, 8]
    assert graphs.give_way()
    graphs.go_on()
    assert not graphs.takes(8)


def test_a_recording_that_breaks_off_is_tried_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def record(self: Graphs, body: Body, inputs: Sequence[torch.Tensor]) -> subject._Recorded:
        tried.append(len(inputs[0]))
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(Graphs, "_record", record)
    graphs = Graphs(parameters=0)
    first_use.taken()
    for _ in range(5):
        run(graphs, 8)
    assert tried == [8, 8]
    made = first_use.taken()
    assert made is not None
    assert (made.recordings, made.broken_off) == (2, 2)


def test_a_recording_that_fails_is_given_up() -> None:
    """After a first pass of its kind a shape would be recorded; the body runs once a call, recorded or not."""
    graphs, calls = Graphs(parameters=0), count()

    def body(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        next(calls)
        return tensors[0] * 2

    with failing(Graphs, "_record", 0, 1):
        for _ in range(4):
            found = graphs.run("key", body, [torch.ones(2)], kind="kind", tokens=2)
            assert found.tolist() == [2.0, 2.0]
    assert next(calls) == 4
    assert not graphs.forget(), "there was nothing to give back"


def test_sizes_are_planned_and_the_largest_is_recorded_first(recorded: list[int]) -> None:
    graphs = Graphs(parameters=0)
    tokens = np.array([5000, 5100, 6000, 5050, 6100, 5120] * 60)
    graphs.expect(tokens, tokens // 5)
    met = []
    for wanted in tokens[:12].tolist():
        line = graphs.line(wanted)
        run(graphs, line)
        met.append(line)
    assert met == [6144, 6144, 6144, 5120, 6144, 5120, 5120, 5120, 6144, 5120, 6144, 5120]
    assert recorded == [6144, 5120], "none is made again for the sake of a larger one"
    assert (graphs.positions(900, 5120), graphs.positions(1000, 5120)) == (1024, 1024)
    assert graphs.positions(1220, 6144) == 1280


def test_few_sizes_are_planned_however_many_steps_are_to_come(recorded: list[int]) -> None:
    graphs = Graphs(parameters=0)
    tokens = np.random.default_rng(0).integers(50_000, 55_000, 100_000)
    graphs.expect(tokens, tokens // 5)
    for wanted in tokens[:400].tolist():
        run(graphs, graphs.line(wanted))
    assert recorded[0] == max(recorded)
    assert len(recorded) == len(set(recorded)) <= 12, "each is recorded once"


def test_what_is_recorded_serves_a_pack_that_has_shrunk(recorded: list[int]) -> None:
    graphs = Graphs(parameters=0)
    tokens = np.array([6000] * 40)
    graphs.expect(tokens, tokens // 5)
    for _ in range(3):
        run(graphs, graphs.line(6000))
    graphs.expect(tokens[3:] - 400, tokens[3:] // 6)
    assert graphs.line(5600) == 6016
    assert graphs.positions(1000, 6016) == 1216
    graphs.forget()
    graphs.expect(tokens[3:] - 400, tokens[3:] // 6)
    assert graphs.line(5600) == 5632


def test_counts_that_nobody_expected_have_sizes_too() -> None:
    graphs = Graphs(parameters=0)
    assert graphs.line(700) == 768
    graphs.expect(np.array([700, 70000]), np.array([70, 7000]))
    assert graphs.line(700) == 768
    assert graphs.line(9000) == 9216
    assert graphs.positions(700, 768) >= 700
