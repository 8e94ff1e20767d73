"""Nothing that was printed is ever erased: the bytes that a real terminal gets, shown on an emulated one."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

pyte = pytest.importorskip("pyte")
TESTS = Path(__file__).parent.parent
SCENE = [sys.executable, str(TESTS / "terminal_scene.py")]
HEIGHT = 24


def environment(**others: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    return {**kept, "TERM": "xterm-256color", "PYTHONUNBUFFERED": "1", **others}


def on_a_terminal(width: int) -> bytes:
    """All that the scene writes to a terminal of that width, stdout and stderr."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, width, 0, 0))
    with subprocess.Popen(SCENE, stdin=theirs, stdout=theirs, stderr=theirs, env=environment()) as scene:
        os.close(theirs)
        written = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the last one has closed the other end
                break
            if not part:
                break
            written += part
    os.close(ours)
    assert scene.returncode == 0, written.decode()
    return written


def seen(written: bytes, width: int) -> list[str]:
    """Lines of the terminal at the end, those that were scrolled away included."""
    screen = pyte.HistoryScreen(width, HEIGHT, history=100_000, ratio=0.5)
    pyte.ByteStream(screen).feed(written)
    passed = ["".join(line[column].data for column in range(width)) for line in screen.history.top]
    return without_times([*passed, *screen.display])


def without_times(lines: list[str]) -> list[str]:
    """A run takes as long as it takes."""
    return [re.sub(r"\b[\d.]+ (s|min)\b", "_", line.rstrip()) for line in lines]


def printed(width: int) -> list[str]:
    """The same without a view: what the scene writes to a file."""
    run = subprocess.run(
        SCENE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(COLUMNS=str(width), LINES=str(HEIGHT)),
        check=True,
        text=True,
    )
    return without_times(run.stdout.splitlines())


def test_the_emulator_shows_what_is_wiped_as_gone() -> None:
    assert seen(b"kept\r\nwiped\r\n\x1b[1A\x1b[2Klast", 20)[:2] == ["kept", "last"]


@pytest.mark.parametrize("width", [80, 120])
def test_every_printed_line_is_still_there(width: int) -> None:
    lines = [line for line in printed(width) if line]
    assert len(lines) > 40
    written = on_a_terminal(width)
    assert b"90/360" in written  # there was a view
    assert b"best so far\x1b" in written  # with the leaders
    all_shown = seen(written, width)
    assert "90/360" not in "\n".join(all_shown)  # which is gone in the end
    shown = iter(all_shown)
    for line in lines:
        assert any(line == other for other in shown), f"gone, or not in its place: {line}"
