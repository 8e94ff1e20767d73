"""`events.jsonl`: written as things happen, readable after any kill."""

import os
import signal
import subprocess
import sys
from json import loads
from pathlib import Path

from loratune.reporting.subscribers import JsonLines
from loratune.study.events import FILE, EventLog
from loratune.values.events import Note, Progress
from study_fixture import read_events

STEP = Progress(trials=(), steps=1, tokens=1, seconds=0.1, occupancy=1.0)


def texts(folder: Path) -> list[str]:
    return [each["text"] for each in read_events(folder) if each["event"] == "note"]


def test_what_came_before_the_directory_is_in_it_too(tmp_path: Path) -> None:
    with EventLog() as log:
        log(Note(text="first"))
        assert not (tmp_path / FILE).exists()
        log.open(tmp_path)
        assert texts(tmp_path) == ["first"]
        log(Note(text="second"))
        assert texts(tmp_path) == ["first", "second"], "without being closed"


def test_without_a_directory_nothing_is_written(tmp_path: Path) -> None:
    with EventLog() as log:
        log(Note(text="refused"))
    assert not list(tmp_path.iterdir())


def test_a_later_run_appends_and_half_a_line_is_passed_over(tmp_path: Path) -> None:
    for text in ("one", "two"):
        with EventLog() as log:
            log.open(tmp_path)
            log(Note(text=text))
        with (tmp_path / FILE).open("a") as file:
            file.write('{"event": "note", "te')
    assert texts(tmp_path) == ["one", "two"]
    assert not (tmp_path / FILE).read_text().endswith("\n")


def test_a_killed_process_has_left_all_it_told(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from loratune.study.events import EventLog
from loratune.values.events import Note
log = EventLog()
log.open(Path({str(tmp_path)!r}))
for i in range(100):
    log(Note(text=str(i)))
os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", code], env=os.environ, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert texts(tmp_path) == [str(i) for i in range(100)]


def test_a_full_disk_ends_the_log_not_the_run(tmp_path: Path) -> None:
    """A file that must not grow beyond 4 KiB, which is what a full disk is to a process."""
    code = f"""
import resource, signal
from pathlib import Path
from loratune.study.events import EventLog
from loratune.values.events import Note
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
with EventLog() as log:
    log.open(Path({str(tmp_path)!r}))
    for i in range(200):
        log(Note(text=str(i)))
print("goes on")
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "goes on\n"
    assert 10 < len(texts(tmp_path)) < 200


def test_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / FILE).symlink_to(tmp_path / "precious")
    (tmp_path / "precious").write_text("years of work\n")
    with EventLog() as log:
        log.open(tmp_path)
        log(Note(text="overwritten"))
    assert (tmp_path / "precious").read_text() == "years of work\n"


def test_progress_is_thinned_out_and_nothing_else(tmp_path: Path) -> None:
    clock = [0.0]
    with EventLog(clock=lambda: clock[0]) as log:
        log.open(tmp_path)
        for _ in range(41):
            log(STEP)
            log(Note(text="note"))
            clock[0] += 0.25
    events = [each["event"] for each in read_events(tmp_path)]
    assert events.count("progress") == 6  # at 0, 2, 4, 6, 8 and 10 s
    assert events.count("note") == 41


def test_json_lines_go_to_their_file_once_a_second(tmp_path: Path) -> None:
    clock, path = [0.0], tmp_path / "lines"
    with path.open("w") as file:
        lines = JsonLines(file, clock=lambda: clock[0])
        for _ in range(9):
            lines(STEP)
            clock[0] += 0.25
        lines(Note(text="end"))
        found = [loads(line) for line in path.read_text().splitlines()]
    assert [each["event"] for each in found] == ["progress"] * 3 + ["note"]
