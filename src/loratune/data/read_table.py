"""Rows of tables: delimited text under a line of column names, and Parquet."""

import csv
from collections.abc import Iterator, Sequence
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from loratune.data.row import Row, first_line
from loratune.errors import DataError
from loratune.files.read_json import parse_json

LONGEST_FIELD = 64 * 2**20
"""A quote that is never closed swallows the rest of a file: name it instead of growing without bound."""
BATCH_ROWS = 1024

_DELIMITERS = (",", ";", "\t", "|")
_SAMPLED = 20
"""Records from which the delimiter is read."""


def read_csv(name: str, file: BinaryIO) -> Iterator[Row]:
    """Values separated by commas, semicolons, tabs or bars, as the first lines show; fields may be quoted."""
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_FIELD))
    with TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        delimiter = _delimiter(text)
        text.seek(0)
        columns: list[str] = []
        for fields, place in _records(name, text, delimiter):
            if not columns:
                columns = _header(fields, place)
            elif len(fields) != len(columns):
                raise DataError(
                    f"{place} must have the {len(columns)} fields of the header ({', '.join(columns)}), "
                    f"got {len(fields)}; quote fields that hold the separator {delimiter!r}."
                )
            else:
                yield Row(dict(zip(columns, fields, strict=True)), place)


def _records(name: str, text: TextIOWrapper, delimiter: str) -> Iterator[tuple[list[str], str]]:
    """The fields of every record that has some, and where it begins."""
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    while True:
        place = f"{name}:{reader.line_num + 1}"
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
        if fields:
            yield fields, place


def _delimiter(text: TextIOWrapper) -> str:
    """The one that cuts the first records into as many fields as the header, the more the better.

    Where none does (a broken row), the one that cuts the header into most; a comma where none cuts it.
    """
    best, found = (False, 1), ","
    for delimiter in _DELIMITERS:
        text.seek(0)
        widths: list[int] = []
        whole = True
        try:
            for fields in islice(csv.reader(text, delimiter=delimiter, strict=True), _SAMPLED):
                widths += [len(fields)] if fields else []
        except (csv.Error, UnicodeDecodeError):
            whole = False
        if widths and widths[0] > 1:
            best, found = max((best, found), ((whole and len(set(widths)) == 1, widths[0]), delimiter))
    return found


def _header(fields: list[str], place: str) -> list[str]:
    columns = [field.strip() for field in fields]
    if "" in columns or len(set(columns)) < len(columns):
        raise DataError(
            f"{place} must name every column once, got {', '.join(map(repr, columns))}; write a "
            "header such as prompt,completion."
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
            yield Row(
                {column: _without_nulls(value) for column, value in values.items()}, f"{name}, row {number}"
            )


def _without_nulls(value: Any) -> Any:
    """Objects without their nulls: Arrow gives every object of a column the keys of all others."""
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_without_nulls(each) for each in value]
    return value


def parquet_class_names(path: Path) -> dict[str, Sequence[str]]:
    """Class names by column, where `datasets` wrote the file and left its features in the metadata."""
    import pyarrow as pa
    from pyarrow.parquet import read_schema

    try:
        features = parse_json((read_schema(path).metadata or {})[b"huggingface"])["info"]["features"]
        return {column: tuple(each["names"]) for column, each in features.items() if "names" in each}
    except (pa.ArrowException, OSError, KeyError, TypeError, AttributeError, ValueError):
        return {}
