"""Signals, pipes and full disks: real processes, real pipes, a real small disk."""

import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from command_fixture import Place
from loratune.study.record import Study
from tiny import animal_rows, save_tiny_model, write_jsonl
from warm import WarmCommand

SEARCH = (
    *("--strategy", "grid", "--epochs", "1", "--budget", "20x"),
    *("--ranks", "2,8", "--learning-rates", "1e-3,1e-2"),
    *("--batch-sizes", "16", "--pack-size", "2", "--validation-rows", "16", "--test-rows", "16"),
    *("--dtype", "float32", "--device", "cpu", "--no-ledger"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("place")
    return Place(save_tiny_model(folder / "model"), write_jsonl(folder / "train.jsonl", animal_rows(100)))


def words_of(place: Place, out: Path) -> list[str | Path]:
    return ["tune", "--model", place.model, "--data", place.data, "--out", out, *SEARCH]


def tune(place: Place, out: Path, **options: Any) -> WarmCommand:
    """`loratune tune`, its temporary files in `temporary` beside `out`."""
    temporary = out.with_name("temporary")
    temporary.mkdir(exist_ok=True)
    return WarmCommand(words_of(place, out), environment={"TMPDIR": str(temporary)}, **options)


def wait_for(process: WarmCommand, out: Path, count: int) -> None:
    limit = time.monotonic() + 240
    while len(list(out.glob("trials/*.npz"))) < count:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < limit
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_run_as_ctrl_c_does(place: Place, tmp_path: Path, number: int, code: int) -> None:
    out = tmp_path / "run"
    # whoever runs the tests may have told them to ignore a hang-up, as nohup does
    process = tune(place, out, handlers={number: signal.SIG_DFL})
    try:
        wait_for(process, out, 2)
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == code, said
    (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert f"loratune tune --config {out / 'loratune.toml'} --resume" in error
    assert list(out.with_name("temporary").iterdir()) == []
    assert len(Study.load(out).results()) >= 2


def test_closed_pipes_do_not_end_a_run(place: Place, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = tune(place, out)
    process.stdout.close()
    process.stderr.close()
    assert process.wait(timeout=240) == 0
    assert (out / "result.json").exists()


def test_a_lost_terminal_does_not_end_a_run_that_ignores_its_hang_up(place: Place, tmp_path: Path) -> None:
    """As under nohup: the signal that whoever started the command has told it to ignore stays ignored."""
    ours, theirs = pty.openpty()
    out = tmp_path / "run"
    process = tune(place, out, terminal=os.ttyname(theirs), handlers={signal.SIGHUP: signal.SIG_IGN})
    os.close(theirs)
    os.close(ours)  # from now on writing to the terminal fails
    time.sleep(1)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=240) == 0
    assert (out / "result.json").exists()


def test_closed_descriptors_are_not_given_to_files(place: Place, tmp_path: Path) -> None:
    """Started with `>&- 2>&-`: nothing that is said may end up in study.db."""
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "loratune", *map(str, words_of(place, out))],
        preexec_fn=lambda: [os.close(each) for each in (1, 2)],
    )
    assert process.wait(timeout=240) == 0
    assert Study.load(out).results()


def test_what_cannot_be_written_to_a_file_is_told() -> None:
    """Unlike a reader that has gone, a full disk loses what somebody wanted."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "loratune", "ledger", "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 4
    assert "could not be written (No space left on device)" in done.stderr


@pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode != 0,
    reason="no private mount of a small disk here",
)
def test_a_full_disk_is_named_and_the_run_goes_on_once_there_is_room(place: Place, tmp_path: Path) -> None:
    """On a disk of 1 MiB, which the study fills."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = f"{sys.executable} -m loratune {' '.join(map(str, words_of(place, disk / 'run')))}"
    script = (
        f"mount -t tmpfs -o size=400k tmpfs {disk}\n{command}; echo code $?\n"
        f"mount -o remount,size=200m {disk}\n{command} --resume; echo code $?\n"
        f"ls {disk}/run; ls -A {disk}/run | grep tmp"
    )
    done = subprocess.run(
        ["unshare", "-rm", "bash", "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert [line for line in done.stdout.splitlines() if line.startswith("code ")] == ["code 4", "code 0"], (
        done
    )
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert f"'{disk}'" in error
    assert "--resume" in error
    assert "result.json" in done.stdout.splitlines()
    assert ".tmp" not in done.stdout
