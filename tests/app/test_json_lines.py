"""`--json-lines`: each event as one JSON object a line, and nothing else where they are."""

from json import loads

import pytest

from command_fixture import Place, Shell

pytest_plugins = ["command_fixture"]

TRAIN = ("--epochs", "1", "--learning-rate", "1e-2")


@pytest.mark.parametrize("as_json", [False, True])
def test_train_tells_its_events(place: Place, shell: Shell, as_json: bool) -> None:
    """On stdout; with --json on stderr, as stdout is then for the document."""
    more = ("--json",) if as_json else ()
    ran = shell("train", *place.options, *TRAIN, "--out", "out", "--json-lines", *more)
    assert ran.code == 0, ran.err
    lines = (ran.err if as_json else ran.out).splitlines()
    events = [loads(line) for line in lines]
    assert events[0]["event"] == "started"
    assert events[0]["command"] == "train"
    assert events[-1]["event"] == "finished"
    assert [each["phase"] for each in events if each["event"] == "phase began"] == [
        "loading", "final run", "testing", "writing",
    ]  # fmt: skip
    (ended,) = [each for each in events if each["event"] == "trial ended"]
    assert ended["metrics"]["nll"] == ended["nll"]
    steps = [each for each in events if each["event"] == "progress"]
    assert steps[0]["trials"][0]["total_steps"] == ended["steps"]
    if as_json:
        assert ran.document["schema"] == 1


def test_bad_input_has_no_event_on_stdout_and_one_sentence(place: Place, shell: Shell) -> None:
    ran = shell("train", *place.options, "--rank", "0", "--json-lines")
    assert ran.code == 2
    assert ran.out == ""
    assert ran.error.startswith("error: ")
