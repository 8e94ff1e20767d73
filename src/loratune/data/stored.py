"""Tokenised rows in a folder, for other processes: arrays as .npy files that are mapped, the rest as JSON.

Nothing is pickled, and no text of a row is in it beyond the labels' words and the template.
"""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loratune.data.prepare import PreparedData
from loratune.data.table import TokenTable
from loratune.errors import DataError
from loratune.files.read_json import parse_json
from loratune.files.write import new_folder, replacing, write_atomically
from loratune.values import Classifier, DataProfile, PromptFormat
from loratune.values.plain import from_plain, to_plain

_SPLITS = ("train", "validation", "test")
_COLUMNS = ("tokens", "supervised", "offsets", "labels", "answers", "references", "index")
"""Columns of a table; the last four may be absent."""
_FACTS = "rows.json"
_PLAIN = ("labels", "notes", "fingerprint")
"""Fields of `PreparedData` that are JSON values as they are."""


def write_rows(data: PreparedData, folder: Path) -> Path:
    """A new folder with all rows: it appears whole or not at all. Raises `OSError` as files do."""
    with new_folder(folder) as fresh:
        files: dict[int, str] = {}
        tables: dict[str, dict[str, Any]] = {}
        for split in _SPLITS:
            columns = {name: getattr(getattr(data, split), name) for name in _COLUMNS}
            tables[split] = {
                name: _kept(array, fresh, files) for name, array in columns.items() if array is not None
            }
            tables[split]["group"] = getattr(data, split).group
        facts = {
            "tables": tables,
            "label_tokens": [ids.tolist() for ids in data.label_tokens],
            "profile": to_plain(data.profile),
            "prompt": to_plain(data.prompt),
            "classifier": to_plain(data.classifier),
            **{name: to_plain(getattr(data, name)) for name in _PLAIN},
        }
        write_atomically(fresh / _FACTS, dumps(facts) + "\n")
    return folder


def _kept(array: npt.NDArray[Any], folder: Path, files: dict[int, str]) -> str:
    """The file of an array; splits of one source share theirs."""
    if id(array) not in files:
        files[id(array)] = f"{len(files)}.npy"
        with replacing(folder / files[id(array)]) as file:
            np.save(file, array, allow_pickle=False)
    return files[id(array)]


def read_rows(folder: Path) -> PreparedData:
    """What `write_rows` wrote, its arrays mapped and not read. Raises `DataError` where it is damaged."""
    try:
        facts = parse_json((folder / _FACTS).read_text(encoding="utf-8"))
        tables = {split: _table(facts["tables"][split], folder) for split in _SPLITS}
        profile = from_plain(DataProfile, facts["profile"])
        return PreparedData(
            **tables,
            profile=profile,
            labels=tuple(map(str, facts["labels"])),
            label_tokens=tuple(np.array(ids, np.int32) for ids in facts["label_tokens"]),
            notes=tuple(map(str, facts["notes"])),
            fingerprint=str(facts["fingerprint"]),
            prompt=from_plain(PromptFormat, facts["prompt"]),
            classifier=None if facts["classifier"] is None else from_plain(Classifier, facts["classifier"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"The tokenised rows in {str(folder)!r} must be as they were written, but: {reason}; "
            "continue the run with --resume, which writes them again."
        ) from None


def _table(files: dict[str, Any], folder: Path) -> TokenTable:
    columns: dict[str, Any] = {}
    for name in _COLUMNS:
        if name in files:
            columns[name] = np.load(folder / Path(files[name]).name, mmap_mode="r", allow_pickle=False)
    table = TokenTable(**columns, group=int(files["group"]))
    if len(table) and int(table.offsets[-1]) != len(table.tokens):
        raise ValueError(f"{len(table.tokens)} tokens where the rows need {int(table.offsets[-1])}")
    return table
