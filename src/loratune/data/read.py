"""Rows of one file, one at a time, each with its place for messages.

Knows file formats; does not know what the columns mean. Never holds more than one batch of rows.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loratune.errors import DataError

# A quote that is never closed swallows the rest of a file: name it instead of growing without bound.
LONGEST_FIELD = 64 * 2**20
BATCH_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it was read."""

    values: Mapping[str, Any]
    place: str
    """Where it stands, for messages: `train.jsonl:17` (line) or `train.parquet, row 17`."""


def read_jsonl(path: Path) -> Iterator[Row]:
    """One JSON object per line; blank lines are skipped. Raises `DataError` with the line of a broken one."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            place = f"{path.name}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{place} must be UTF-8, but byte {error.start + 1} of the line is not; save the file "
                    "as UTF-8."
                ) from None
            if not text.strip():
                continue
            values = _json_object(text, place)
            yield Row(values, place)


def _json_object(text: str, place: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
        if "\\u" in text:  # half of an escaped pair is valid JSON but no text
            json.dumps(values, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        array = text.lstrip().startswith("[")
        hint = "write one object per line, not an array" if array else "correct or remove the line"
        raise DataError(
            f"{place} is not valid JSON: {error.msg} at column {error.colno}, near "
            f"{text[max(error.pos - 10, 0) : error.pos + 20].strip()!r}; {hint}."
        ) from None
    except (RecursionError, ValueError) as error:
        raise DataError(
            f"{place} is not usable JSON: {first_line(error)}; correct or remove the line."
        ) from None
    if not isinstance(values, dict):
        raise DataError(
            f"{place} must be a JSON object with named columns, got {kind_of(values)}; write one object "
            "per line."
        )
    return values


def read_csv(path: Path) -> Iterator[Row]:
    """Comma- or (.tsv) tab-separated values under a line of column names; quoted fields may hold newlines."""
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_FIELD))
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        columns: list[str] = []
        while True:
            place = f"{path.name}:{reader.line_num + 1}"
            try:
                fields = next(reader, None)
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{place} or a line soon after it must be UTF-8, but {error.reason} was found; "
                    "save the file as UTF-8."
                ) from None
            except csv.Error as error:
                raise DataError(
                    f"{place} is not valid CSV: {error}; check the quotes from this line on."
                ) from None
            if fields is None:
                return
            if not columns:
                columns = _header(fields, place)
            elif fields:
                if len(fields) != len(columns):
                    raise DataError(
                        f"{place} must have the {len(columns)} fields of the header ({', '.join(columns)}), "
                        f"got {len(fields)}; quote fields that hold the separator."
                    )
                yield Row(dict(zip(columns, fields, strict=True)), place)


def _header(fields: list[str], place: str) -> list[str]:
    columns = [field.strip() for field in fields]
    if fields and ("" in columns or len(set(columns)) < len(columns)):
        raise DataError(
            f"{place} must name every column once, got {', '.join(map(repr, columns))}; correct the "
            "header line."
        )
    return columns


def read_parquet(path: Path) -> Iterator[Row]:
    """Rows of a Parquet file, read batch by batch."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path, pre_buffer=False) as file:
            yield from rows_of_batches(file.iter_batches(batch_size=BATCH_ROWS), path.name)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{path} is not readable Parquet: {first_line(error)}; write the file again."
        ) from None


def rows_of_batches(batches: Iterator[Any], name: str) -> Iterator[Row]:
    """Rows of pyarrow batches or tables, numbered from 1."""
    number = 0
    for batch in batches:
        for values in batch.to_pylist():
            number += 1
            yield Row(values, f"{name}, row {number}")


def parquet_class_names(path: Path) -> dict[str, tuple[str, ...]]:
    """Class names by column, where `datasets` wrote the file and left its features in the metadata."""
    import pyarrow as pa
    from pyarrow.parquet import read_schema

    try:
        features = json.loads((read_schema(path).metadata or {})[b"huggingface"])["info"]["features"]
        return {column: tuple(each["names"]) for column, each in features.items() if "names" in each}
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return {}


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_jsonl,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
}


def read_file(path: Path) -> Iterator[Row]:
    """Rows of a file by its extension. Raises `DataError` where it is missing, unknown, broken or empty."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path} must be one of {', '.join(READERS)}, got {path.suffix or 'no extension'!r}; convert "
            "the file."
        )
    if not path.is_file():
        raise DataError(f"{path} does not exist; check the path given as data, validation or test.")
    empty = True
    try:
        for row in reader(path):
            empty = False
            yield row
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}; check the file.") from None
    if empty:
        raise DataError(f"{path} is empty, but must hold at least one row (a header is no row); add rows.")


def first_line(error: BaseException) -> str:
    """What a third-party error says, in one line without its full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def kind_of(value: object) -> str:
    """A value in words, for messages."""
    if value is None:
        return "null"
    names = {"str": "text", "dict": "an object", "list": "a list", "int": "a number", "float": "a number"}
    name = names.get(type(value).__name__, type(value).__name__)
    return f"{name} ({value!r:.40})" if name in ("text", "a number", "bool") else name
