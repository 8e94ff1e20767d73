"""A budget in time that cannot work is refused as soon as that is known, with one that can; nothing is written."""

import re

import pytest

from command_fixture import Place, Shell
from loratune.costs import measuring
from loratune.costs.budget import Budget

pytest_plugins = ["command_fixture"]


def test_where_loading_alone_takes_it(place: Place, shell: Shell) -> None:
    ran = shell("tune", *place.options, "--out", "run", "--budget", "0.001s")
    assert ran.code == 2
    assert "--budget 0.001s leaves no time to search: loading alone took" in ran.error
    assert not shell.written


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
