"""The ledger shown: which finished studies correct the prior, and what they taught."""

from __future__ import annotations

from json import dumps

from loratune.errors import InputError
from loratune.reporting.screen import Screen
from loratune.reporting.terminal import print_ledger
from loratune.study.ledger import VARIABLE, LedgerError, ledger_path, read_ledger
from loratune.values.plain import to_plain


def ledger_command(*, as_json: bool) -> None:
    """Print all studies, the oldest first. Raises `InputError` where the ledger cannot be read."""
    path = ledger_path()
    try:
        found = read_ledger(path)
    except LedgerError as error:
        raise InputError(str(error).replace(", or give --no-ledger", "")) from None
    entries = found.studies
    if as_json:
        studies = [
            {"finished": each.finished, "directory": each.directory, **to_plain(each.task)}
            for each in entries
        ]
        print(dumps({"path": str(path), "studies": studies}))
        return
    console = Screen()
    rows = [(each.finished, each.directory, each.task) for each in entries]
    print_ledger(console, rows, f"{path} (${VARIABLE} moves it)")
