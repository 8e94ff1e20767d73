"""A budget in time that cannot work is refused as soon as that is known, with one that can; nothing is written."""

import re
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from command_fixture import Place, Shell
from loratune.costs import ceiling, measuring
from loratune.costs.budget import Budget, TooSlow
from loratune.costs.calibration import Calibration
from loratune.costs.execution import ON_CUDA
from loratune.costs.limits import Limits
from loratune.engine.pack import PackEngine
from loratune.errors import InputError
from loratune.maths.laws import passes
from loratune.runners.spec import EngineFacts
from loratune.tuning import workbench
from loratune.values import HyperParameters, Trial

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


def test_a_gpu_by_its_products(shell: Shell, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first step compiles, so it says nothing; no step is faster than the products alone."""
    rates = []

    def first_step(
        engine: PackEngine, limits: Limits, recipe: HyperParameters, least: float, *_: Any
    ) -> None:
        trial = Trial(hyper_parameters=replace(recipe, batch_size=8))
        rates.append(measuring.measure_step(engine, [trial], seconds=0.0).rate)
        there = replace(limits, execution=ON_CUDA)
        real_check(engine, there, recipe, rates[0], {})  # what it does reach is not refused
        real_check(engine, there, recipe, least, {})

    real_check = measuring._check_first_step
    monkeypatch.setattr(measuring, "_check_first_step", first_step)
    monkeypatch.setattr(measuring, "_measured", lambda *_: pytest.fail("it went on measuring"))
    # what fills a GPU takes a core seconds
    monkeypatch.setattr(ceiling, "product_rate", partial(ceiling.product_rate, side=512))
    monkeypatch.setattr(workbench, "_left", lambda *_: 1e-9)
    ran = shell("plan", *place.options, "--budget", "30s", "--recalibrate")
    assert ran.code == 2
    assert "as its products show: this device trains at most" in ran.error
    most = float(re.findall(r"at most (\d+) tokens/s", ran.error)[0])
    assert most > rates[0]
    assert not shell.written


@pytest.mark.parametrize(("runs", "refused"), [("0.02x", True), ("0.3x", False)])
def test_full_runs_on_a_gpu_whatever_its_launches_take(
    runs: str, refused: bool, place: Place, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EngineFacts, "on_cpu", property(lambda _: False))

    def measured(*_: Any, **__: Any) -> None:
        raise InputError("it is measured.")

    monkeypatch.setattr("loratune.runners.local.calibrate", measured)
    ran = shell("plan", *place.options, "--budget", runs, "--recalibrate", "--epochs", "50")
    assert ("does not pay for one trial" if refused else "it is measured") in ran.error


def test_a_time_that_pays_for_no_trial_is_answered_by_one_that_does(
    place: Place, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Calibration(pack=12.0, alone=6.0, forward=1e6, slots=8)
    monkeypatch.setattr("loratune.runners.local.calibrate", lambda *_, **__: slow)
    given = ("plan", *place.options, "--recalibrate", "--epochs", "1", "--budget")
    final = float(re.findall(r"run needs about (\d+) s", shell(*given, "60s").error)[0])
    ran = shell(*given, f"{final + 10}s")  # the final run fits, no trial of the search does
    (least,) = re.findall(r"which pays for no trial; raise it to at least (\d+(?:\.\d+)?[smh]) ", ran.error)
    assert shell(*given, least).code == 0
