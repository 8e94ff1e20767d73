"""A word to a run from another process: end the search with what is known. A file in the run directory says it."""

from __future__ import annotations

from pathlib import Path

from loratune.files.write import write_atomically

FILE = "stop"


def ask_to_stop(directory: Path) -> None:
    """The search begins no trial any more, and what runs ends at its next reading. Raises `OSError` as files do."""
    write_atomically(directory / FILE, "Asks the run in this folder to end its search with what is known.\n")


def is_asked_to_stop(directory: Path) -> bool:
    """Whether somebody has."""
    return (directory / FILE).exists()


def forget_stop(directory: Path) -> None:
    """A run that begins or has ended was not meant by it."""
    (directory / FILE).unlink(missing_ok=True)
