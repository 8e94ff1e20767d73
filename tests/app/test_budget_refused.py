"""A budget in time that cannot work is refused as soon as that is known, with one that can; nothing is written."""

import re

import pytest

from command_fixture import Place, Shell
from loratune.costs import measuring
from loratune.costs.budget import Budget, TooSlow
from loratune.maths.laws import passes

pytest_plugins = ["command_fixture"]


def test_where_loading_alone_takes_it(place: Place, shell: Shell) -> None:
    ran = shell("tune", *place.options, "--out", "run", "--budget", "0.001s")
    assert ran.code == 2
    assert "--budget 0.001s leaves no time to search: loading alone took" in ran.error
    assert not shell.written


def test_full_runs_that_pay_for_no_trial_are_refused_before_a_step(
    place: Place, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "calibrate", lambda *_, **__: pytest.fail("it measured"))
    monkeypatch.setattr(measuring, "measure_step", lambda *_, **__: pytest.fail("it measured"))
    ran = shell("plan", *place.options, "--budget", "0.5x", "--recalibrate")
    assert ran.code == 2
    assert "The budget of 0.5 full runs does not pay for one trial" in ran.error
    (least,) = re.findall(r"raise --budget to at least (\S+)x", ran.error)
    assert 1 <= float(least) < 2
    assert not shell.written


def test_the_epochs_that_the_rows_decide_are_counted(
    place: Place, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_slow(*_: object) -> None:
        raise TooSlow(1.0)

    monkeypatch.setattr(measuring, "_check_first_step", too_slow)
    needed = {}
    for epochs in ("1", "auto"):
        ran = shell("plan", *place.options, "--budget", "1h", "--recalibrate", "--epochs", epochs)
        needed[epochs] = float(re.findall(r"the final run needs (\d+) s", ran.error)[0])
    rows = 120 - 2 * 18  # 15 % each for validation and test
    assert passes("auto", rows) > 1
    assert needed["auto"] / needed["1"] == pytest.approx(passes("auto", rows), rel=0.01)


def test_after_a_first_step_with_the_smallest_that_would_do(
    place: Place, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hope for a faster step is what is left of none: every first step is too slow."""
    monkeypatch.setattr(measuring, "_HOPE", 0.0)
    monkeypatch.setattr(measuring, "_measured", lambda *_: pytest.fail("it went on measuring"))
    ran = shell("plan", *place.options, "--budget", "1h", "--recalibrate")
    assert ran.code == 2
    assert "tokens/s of a first step the final run needs" in ran.error
    (least,) = re.findall(r"give at least (\S+)", ran.error)
    assert Budget.parse(least).seconds
    assert not shell.written
