"""The ledger at the command line: which finished studies correct the prior, what they taught, and which are to go."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Any

from loratune.errors import InputError, printable
from loratune.reporting.screen import Screen
from loratune.reporting.terminal import print_ledger
from loratune.study.ledger import (
    VARIABLE,
    Entries,
    Entry,
    LedgerError,
    ledger_path,
    read_ledger,
    remove_entries,
)
from loratune.values.plain import to_plain


def list_command(*, as_json: bool) -> None:
    """Print all studies, the oldest first. Raises `InputError` where the ledger cannot be read."""
    path, found = _read()
    if as_json:
        studies = [_values(each) for each in found.studies]
        print(dumps({"path": str(path), "studies": studies, "damaged": found.damaged_keys}))
        return
    console = Screen()
    rows = [(each.key, each.finished, each.directory, each.task) for each in found.studies]
    print_ledger(console, rows, f"{path} (${VARIABLE} moves it)")
    if note := found.note(path):
        overview = (
            f"{note} Their keys: {', '.join(found.damaged_keys)}; `loratune ledger remove KEY` takes one out."
        )
        console.print(overview, markup=False, highlight=False)


def show_command(key: str, *, as_json: bool) -> None:
    """Print all that is known of one study. Raises `InputError` where there is none of that key."""
    path, found = _read()
    entry = next((each for each in found.studies if each.key == key), None)
    if entry is None:
        raise _unknown(path, [key], damaged=key in found.damaged_keys)
    values = _values(entry)
    if as_json:
        print(dumps(values))
        return
    optima = values.pop("optima")
    for name, value in values.items():
        print(f"{name}: {printable(str(value))}")
    for each in optima:
        print("optimum: " + ", ".join(f"{name} {value}" for name, value in each.items()))


def remove_command(keys: list[str]) -> None:
    """Take studies out of the ledger: all that are named, or none. Raises `InputError` for a key that is not there."""
    path, found = _read()
    missing = set(keys) - {each.key for each in found.studies} - set(found.damaged_keys)
    if missing:
        raise _unknown(path, sorted(missing))
    try:
        removed = remove_entries(path, keys)
    except LedgerError as error:
        raise _refused(error) from None
    print(f"Removed {removed} of {len(found.studies) + found.damaged} from {printable(str(path))}.")


def _read() -> tuple[Path, Entries]:
    path = ledger_path()
    try:
        return path, read_ledger(path)
    except LedgerError as error:
        raise _refused(error) from None


def _refused(error: LedgerError) -> InputError:
    return InputError(str(error).replace(", or give --no-ledger", ""))


def _unknown(path: Path, keys: list[str], *, damaged: bool = False) -> InputError:
    if damaged:
        return InputError(
            f"Entry {keys[0]} of the ledger {path} cannot be read; `loratune ledger remove` takes it out."
        )
    return InputError(
        f"The ledger {path} has no entry {', '.join(keys)}; `loratune ledger list` shows the keys."
    )


def _values(entry: Entry) -> dict[str, Any]:
    about = {"key": entry.key, "finished": entry.finished, "directory": entry.directory}
    return {**about, **to_plain(entry.task)}
