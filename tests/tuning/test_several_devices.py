"""`--devices cpu,cpu`: interrupted and resumed it comes to what one process comes to; the plan; bad input."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import loratune
from loratune.costs import measuring
from loratune.costs.calibration import Calibration
from loratune.errors import InputError, Interrupted
from loratune.model.device import pick_devices
from loratune.reporting.result import TuneResult
from loratune.runners import processes
from loratune.study.record import Study
from loratune.tuning.devices import host_of
from loratune.tuning.options import TuneOptions, keyword_options
from loratune.tuning.workbench import Workbench
from loratune.values.events import Event, Planned, TrialEnded
from tiny import animal_rows, save_tiny_model, write_jsonl
from warm import warm_context

WISHES: dict[str, Any] = {"ranks": [2, 8], "budget": "6x", "dtype": "float32", "epochs": 1.0, "device": "cpu"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Model and rows; one calibration for all runs, since plans rest on it."""
    folder = tmp_path_factory.mktemp("place")
    known: list[Calibration] = []
    measure = Workbench.calibrate

    def once(bench: Workbench, options: Any, spent: float = 0.0) -> Calibration:
        if not known:
            known.append(measure(bench, options, spent))
        return known[0]

    patch = pytest.MonkeyPatch()
    patch.setattr(processes, "get_context", warm_context)
    patch.setattr(measuring, "SECONDS", 0.1)
    patch.setattr(Workbench, "calibrate", once)
    yield {
        "model": save_tiny_model(folder / "model"),
        "data": write_jsonl(folder / "train.jsonl", animal_rows(120)),
        **WISHES,
    }
    patch.undo()


def test_interrupted_and_resumed_it_decides_as_one_process_does(
    place: dict[str, Any], tmp_path: Path
) -> None:
    """The same trials, their losses equal to rounding, and the same choice; nothing finished is trained again."""
    alone = loratune.tune(out=tmp_path / "alone", **place)
    planned: list[Planned] = []
    ended: list[str] = []

    def interrupt(event: Event) -> None:
        if isinstance(event, Planned):
            planned.append(event)
        if isinstance(event, TrialEnded):
            ended.append(event.key)
            if len(ended) == 2:
                raise KeyboardInterrupt

    both = tmp_path / "both"
    with pytest.raises(Interrupted, match="continue with loratune tune --config"):
        loratune.tune(out=both, devices=["cpu", "cpu"], on_event=interrupt, **place)
    assert list(both.glob(".workers*")) == []
    assert [event.devices for event in planned] == [2]
    before = {result.asked.key: result.seconds for result in Study.load(both).results()}
    assert set(before) == set(ended)
    found = loratune.resume(both)
    assert set(before.items()) <= {(r.asked.key, r.seconds) for r in Study.load(both).results()}
    assert losses(found) == pytest.approx(losses(alone), rel=1e-5)
    assert found.recommended == alone.recommended
    assert found.metrics["test"]["nll"] == pytest.approx(alone.metrics["test"]["nll"], rel=1e-5)
    assert 'devices = ["cpu", "cpu"]' in (both / "loratune.toml").read_text()


def losses(result: TuneResult) -> dict[str, float]:
    return {each.asked.key: each.nll for each in Study.load(result.directory).results()}


@pytest.mark.parametrize(
    ("devices", "says"),
    [
        (
            ["gpu"],
            "--devices must be all, GPUs by their numbers such as 0,1, cpu or cpu,cpu, or workers, got 'gpu'",
        ),
        (["workers", "0"], "--devices must be all, .*, got 'workers,0'"),
        (["all", "0"], "--devices must be all, .*, got 'all,0'"),
        (["-1"], "--devices must be all, .*, got '-1'"),
        (["cuda"], "--devices must be all, .*, got 'cuda'"),
    ],
)
def test_what_names_no_device(devices: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        TuneOptions(model="m", data="d", devices=tuple(devices))


@pytest.mark.parametrize(
    ("devices", "says"),
    [
        ((), "--shard-base needs several --devices of this machine, none are given"),
        (("workers",), "--shard-base needs several --devices of this machine, got --devices workers"),
        (("0",), "--shard-base needs several --devices of this machine, got --devices 0"),
    ],
)
def test_a_base_is_spread_over_several(devices: tuple[str, ...], says: str) -> None:
    with pytest.raises(InputError, match=says):
        TuneOptions(model="m", data="d", devices=devices, shard_base=True)


def test_all_may_be_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(InputError, match=r"needs several devices, --devices all has 1; .*--dtype nf4"):
        host_of(["all"], tmp_path, sharded=True)


def test_devices_that_are_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert pick_devices(["all"]) == ("cuda:0", "cuda:1")
    assert pick_devices(["1", "cuda:0"]) == ("cuda:1", "cuda:0")
    assert pick_devices(["cpu", "cpu"]) == ("cpu", "cpu")
    assert pick_devices([]) == ()
    with pytest.raises(
        InputError, match=r"sees 2 CUDA devices and cuda:5 is none of them; give --devices 0,1\."
    ):
        pick_devices(["0", "5"])
    for wrong in (["0", "0"], ["0", "cpu"], ["1", "cuda:01"]):
        with pytest.raises(InputError, match="must be different GPUs, or cpu as often"):
            pick_devices(wrong)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(InputError, match=r"PyTorch sees none; give --devices cpu,cpu"):
        pick_devices(["all"])


def test_numbers_in_python() -> None:
    options = TuneOptions(**keyword_options({"model": "m", "data": "d", "devices": [0, 1]}))
    assert options.devices == ("0", "1")
