"""The ledger at the command line: which finished studies correct the prior, what they taught, and which are to go."""

from __future__ import annotations

from json import dumps
from typing import Any

from loratune.errors import InputError, printable
from loratune.reporting.screen import Screen
from loratune.reporting.terminal import print_ledger
from loratune.study.ledger import VARIABLE, Entries, Entry, LedgerError
from loratune.study.ledgers import Ledger, open_ledger, team_of
from loratune.values.plain import to_plain


def list_command(url: str | None = None, *, as_json: bool) -> None:
    """Print all studies, the oldest first. Raises `InputError` where the ledger cannot be read."""
    ledger, found = _read(url)
    if as_json:
        studies = [_values(each) for each in found.studies]
        print(dumps({"path": ledger.name, "studies": studies, "damaged": found.damaged_keys}))
        return
    console = Screen()
    rows = [(each.key, each.finished, each.directory, each.owner, each.task) for each in found.studies]
    print_ledger(console, rows, f"{ledger.name} (${VARIABLE} moves it)")
    if note := found.note(ledger.name):
        overview = (
            f"{note} Their keys: {', '.join(found.damaged_keys)}; `loratune ledger remove KEY` takes one out."
        )
        console.print(overview, markup=False, highlight=False)


def show_command(key: str, url: str | None = None, *, as_json: bool) -> None:
    """Print all that is known of one study. Raises `InputError` where there is none of that key."""
    ledger, found = _read(url)
    entry = next((each for each in found.studies if each.key == key), None)
    if entry is None:
        raise _unknown(ledger.name, [key], damaged=key in found.damaged_keys)
    values = _values(entry)
    if as_json:
        print(dumps(values))
        return
    optima = values.pop("optima")
    for name, value in values.items():
        print(f"{name}: {printable(str(value))}")
    for each in optima:
        print("optimum: " + ", ".join(f"{name} {value}" for name, value in each.items()))


def remove_command(keys: list[str], url: str | None = None) -> None:
    """Take studies out of the ledger: all that are named, or none. Raises `InputError` for a key that is not there."""
    ledger, found = _read(url)
    missing = set(keys) - {each.key for each in found.studies} - set(found.damaged_keys)
    if missing:
        raise _unknown(ledger.name, sorted(missing))
    try:
        removed = ledger.remove(keys)
    except LedgerError as error:
        raise _refused(error) from None
    print(f"Removed {removed} of {len(found.studies) + found.damaged} from {printable(ledger.name)}.")


def _read(url: str | None) -> tuple[Ledger, Entries]:
    if url is not None and team_of([url]) is None:
        raise InputError(
            "--ledger must be the URL of a team's ledger; give e.g. postgresql://ann@host/ledger."
        )
    ledger = open_ledger(url)
    try:
        return ledger, ledger.read()
    except LedgerError as error:
        raise _refused(error) from None


def _refused(error: LedgerError) -> InputError:
    return InputError(str(error).replace(", or give --no-ledger", "").replace(", or --no-ledger", ""))


def _unknown(name: str, keys: list[str], *, damaged: bool = False) -> InputError:
    if damaged:
        return InputError(
            f"Entry {keys[0]} of the ledger {name} cannot be read; `loratune ledger remove` takes it out."
        )
    return InputError(
        f"The ledger {name} has no entry {', '.join(keys)}; `loratune ledger list` shows the keys."
    )


def _values(entry: Entry) -> dict[str, Any]:
    about = {"key": entry.key, "finished": entry.finished, "directory": entry.directory}
    if entry.owner:
        about["owner"] = entry.owner
    return {**about, **to_plain(entry.task)}
