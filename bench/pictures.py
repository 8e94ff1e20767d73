"""The pictures of README.md and docs/: a real command in a terminal, and the first screen of its report.

    python bench/pictures.py run runs/reuters -- loratune tune --model M --data train.csv --out runs/reuters
    python bench/pictures.py draw runs/reuters --at 0.6 --images docs/images

`run` gives the command a terminal of 110 columns and keeps what it writes beside the run directory, with the times;
`draw` shows the terminal as it was at a share of the time, and lets Chromium take the report; it alone needs `pyte`
and Chromium, so that another machine may have run the command.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import shutil
import struct
import subprocess
import termios
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import TYPE_CHECKING

from rich.color import ColorParseError
from rich.console import Console
from rich.style import Style
from rich.text import Text

if TYPE_CHECKING:
    import pyte

COLUMNS, LINES = 110, 34
PAGE = "1280,1000"
# rich's own frame, without the font that it would fetch
FRAME = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>{styles} .{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, monospace; \
font-size: {char_height}px; line-height: {line_height}px; }}</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" \
height="{terminal_height}"/></clipPath>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}<g class="{unique_id}-matrix">{matrix}</g></g>
</svg>
"""


def kept(run: Path) -> Path:
    """What the terminal was sent: a line for each piece, with its second."""
    return run.with_name(f"{run.name}-terminal.jsonl")


def record(run: Path, command: list[str]) -> int:
    """Run the command in a terminal of its own; returns its exit code."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    began = monotonic()
    kept(run).parent.mkdir(parents=True, exist_ok=True)
    with (
        kept(run).open("w", encoding="utf-8") as file,
        subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process,
    ):
        os.close(theirs)
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # the last one has closed the other end
                break
            if not piece:
                break
            print(json.dumps([monotonic() - began, piece.decode("latin-1")]), file=file, flush=True)
    return process.returncode


def screen(run: Path, share: float) -> list[Text]:
    """The lines of the terminal after this share of the time, empty ones at the end left out."""
    import pyte

    pieces = [json.loads(line) for line in kept(run).read_text(encoding="utf-8").splitlines()]
    shown = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(shown)
    for second, piece in pieces:
        if second <= share * pieces[-1][0]:
            stream.feed(piece.encode("latin-1"))
    lines = [_line(shown, row) for row in range(LINES)]
    while lines and not lines[-1].plain.strip():
        del lines[-1]
    return lines


def _line(shown: pyte.Screen, row: int) -> Text:
    text = Text()
    for column in range(COLUMNS):
        cell = shown.buffer[row][column]
        text.append(cell.data, _style(cell))
    return text


def _style(cell: pyte.screens.Char) -> Style:
    colour = cell.fg if cell.fg in ("red", "green", "blue", "magenta", "cyan", "white", "black") else None
    named = {"brown": "yellow", "brightblack": "bright_black", "default": None}.get(cell.fg, colour)
    if len(cell.fg) == 6 and named is None and cell.fg != "default":
        named = f"#{cell.fg}"
    try:
        return Style(color=named, bold=cell.bold, reverse=cell.reverse)
    except ColorParseError:
        return Style(bold=cell.bold)


def draw_terminal(lines: list[Text], title: str, path: Path) -> None:
    """As an SVG that fetches nothing."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere)
        for line in lines:
            console.print(line, no_wrap=True, crop=True)
        svg = console.export_svg(title=title, code_format=FRAME)
    path.write_text(svg, encoding="utf-8")


def draw_report(run: Path, path: Path) -> None:
    """The first screen of the page, by Chromium."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        raise SystemExit("Chromium must be installed to draw a report, and is not.")
    with TemporaryDirectory() as profile:
        subprocess.run(
            [
                program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                f"--user-data-dir={profile}", f"--window-size={PAGE}", f"--screenshot={path.resolve()}",
                (run / "report.html").resolve().as_uri(),
            ],
            check=True,
            capture_output=True,
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    kinds = parser.add_subparsers(dest="what", required=True)
    running = kinds.add_parser("run")
    running.add_argument("directory", type=Path)
    running.add_argument("command", nargs="+")
    drawing = kinds.add_parser("draw")
    drawing.add_argument("directory", type=Path)
    drawing.add_argument("--at", type=float, default=1.0)
    drawing.add_argument("--title", default="loratune tune")
    drawing.add_argument("--images", type=Path, default=Path("docs/images"))
    given = parser.parse_args()
    if given.what == "run":
        raise SystemExit(record(given.directory, given.command))
    given.images.mkdir(parents=True, exist_ok=True)
    draw_terminal(screen(given.directory, given.at), given.title, given.images / "terminal.svg")
    draw_report(given.directory, given.images / "report.png")


if __name__ == "__main__":
    main()
