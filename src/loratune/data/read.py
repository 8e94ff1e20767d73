"""Rows of one file, one at a time, each with its place for messages.

Knows which format an extension means; does not know what the columns mean.
"""

import gzip
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, cast

from loratune.data.read_json import read_json, read_jsonl
from loratune.data.read_table import read_csv, read_parquet
from loratune.data.row import Row, first_line
from loratune.errors import DataError

TEXT_FORMATS: dict[str, Callable[[str, BinaryIO], Iterator[Row]]] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
}
"""Each of them may be compressed (.jsonl.gz)."""
FORMATS = (*TEXT_FORMATS, ".parquet", *(f"{extension}.gz" for extension in TEXT_FORMATS))
FORMATS_SHOWN = f"{', '.join((*TEXT_FORMATS, '.parquet'))} (or a text format with .gz)"


def format_of(path: Path) -> str:
    """The extension in small letters, `.jsonl.gz` in one piece; whether it is known is `FORMATS`' business."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[-2:] if suffixes[-1:] == [".gz"] else suffixes[-1:])


def read_file(path: Path) -> Iterator[Row]:
    """Rows of a file by its extension. Raises `DataError` where it is missing, unknown, broken or empty."""
    extension = format_of(path)
    if extension not in FORMATS:
        raise DataError(
            f"{path} must be one of {FORMATS_SHOWN}, got {extension or 'no extension'!r}; convert the file."
        )
    if not path.is_file():
        raise DataError(f"{path} does not exist; check the path given as data, validation or test.")
    empty = True
    try:
        for row in read_parquet(path) if extension == ".parquet" else _read_text(path, extension):
            empty = False
            yield row
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} is not readable gzip: {first_line(error)}; compress the file again."
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}; check the file.") from None
    if empty:
        raise DataError(f"{path} is empty, but must hold at least one row (a header is no row); add rows.")


def _read_text(path: Path, extension: str) -> Iterator[Row]:
    with _opened(path) as file:
        yield from TEXT_FORMATS[extension.removesuffix(".gz")](path.name, file)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, decompressed where it is gzip, whatever its name says."""
    with path.open("rb") as file:
        if file.peek(2)[:2] != b"\x1f\x8b":
            yield file
            return
        with gzip.open(file) as inner:
            yield cast(BinaryIO, BufferedReader(inner))
