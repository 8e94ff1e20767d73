"""Rows of JSON files: one object per line, one array of objects, or one object that wraps such a list.

Lines are read one at a time; an array is held as a whole.
"""

import json
import re
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any, BinaryIO

from loratune.data.row import Row, first_line, kind_of
from loratune.errors import DataError

NumberedLine = tuple[int, str]
"""Its number, from 1, and its text."""

_BETWEEN = re.compile(r"[\s,]*")
_KEYS_NAMED = 8


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's values. The standard library would keep the last of two equal keys without a word."""
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is in one object twice")
    return values


_DECODER = json.JSONDecoder(object_pairs_hook=_once)


def read_jsonl(name: str, file: BinaryIO) -> Iterator[Row]:
    """One object per line, or one array of objects. Raises `DataError` with the line of a broken row."""
    lines = _lines(name, file)
    first = next(_filled(lines), None)
    if first is not None and first[1].lstrip().startswith("["):
        yield from _array(name, _joined([first], lines))
    elif first is not None:
        for number, text in chain([first], _filled(lines)):
            yield _row(name, number, text)


def read_json(name: str, file: BinaryIO) -> Iterator[Row]:
    """The rows of `read_jsonl`, or of one object around one list of objects, on any number of lines."""
    lines = _lines(name, file)
    first = next(_filled(lines), None)
    if first is None:
        return
    if first[1].lstrip().startswith("["):
        yield from _array(name, _joined([first], lines))
    elif not first[1].rstrip().endswith("}") or (second := next(_filled(lines), None)) is None:
        yield from _wrapped(name, _joined([first], lines))
    else:
        for number, text in chain((first, second), _filled(lines)):
            yield _row(name, number, text)


def _lines(name: str, file: BinaryIO) -> Iterator[NumberedLine]:
    for number, line in enumerate(file, start=1):
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{name}:{number} must be UTF-8, but byte {error.start + 1} of the line is not; save the "
                "file as UTF-8."
            ) from None


def _filled(lines: Iterator[NumberedLine]) -> Iterator[NumberedLine]:
    return (line for line in lines if line[1].strip())


def _joined(read: list[NumberedLine], lines: Iterator[NumberedLine]) -> str:
    """The whole file again, from lines read so far and those to come; lines keep their numbers."""
    pieces: list[str] = []
    for number, text in chain(read, lines):
        pieces += ["\n"] * (number - 1 - len(pieces))
        pieces.append(text)
    return "".join(pieces)


def _row(name: str, number: int, text: str) -> Row:
    place = f"{name}:{number}"
    try:
        values = _DECODER.decode(text)
        _check_text(text, values)
    except json.JSONDecodeError as error:
        raise _invalid(place, error) from None
    except (RecursionError, ValueError) as error:
        raise _unusable(place, error) from None
    return Row(_object(values, place), place)


def _array(name: str, text: str) -> Iterator[Row]:
    """The objects of an array, each with the line on which it begins."""
    position, line, counted = text.index("[") + 1, 1, 0
    number = 0
    while True:
        between = _BETWEEN.match(text, position)
        position = between.end() if between else position
        number += 1
        line += text.count("\n", counted, position)
        counted = position
        place = f"{name}:{line}, row {number}"
        if text[position : position + 1] == "]":
            break
        try:
            values, end = _DECODER.raw_decode(text, position)
            _check_text(text[position:end], values)
        except json.JSONDecodeError as error:
            raise _invalid(f"{name}:{error.lineno}", error) from None
        except (RecursionError, ValueError) as error:
            raise _unusable(place, error) from None
        yield Row(_object(values, place), place)
        position = end
    rest = text[position + 1 :]
    if rest.strip():
        line += rest.count("\n", 0, len(rest) - len(rest.lstrip()))
        raise DataError(
            f"{name}:{line} must end after its array of rows, got {rest.strip()[:20]!r}; write one array."
        )


def _wrapped(name: str, text: str) -> Iterator[Row]:
    """The one list of objects that a document holds beside other values."""
    try:
        document = _object(_DECODER.decode(text), name)
        _check_text(text, document)
    except json.JSONDecodeError as error:
        raise _invalid(f"{name}:{error.lineno}", error) from None
    except (RecursionError, ValueError) as error:
        raise _unusable(name, error) from None
    lists = [
        key
        for key, value in document.items()
        if isinstance(value, list) and value and all(isinstance(each, dict) for each in value)
    ]
    if len(lists) != 1:
        keys = ", ".join(islice(document, _KEYS_NAMED)) + (" and more" if len(document) > _KEYS_NAMED else "")
        raise DataError(
            f"{name} must hold one list of objects, got {len(lists)} in an object with the keys "
            f"{keys or 'none'}; write an array of rows, or one object per line."
        )
    for number, values in enumerate(document[lists[0]], start=1):
        yield Row(values, f"{name}, row {number} of {lists[0]!r}")


def _check_text(text: str, values: Any) -> None:
    """Raise `ValueError` for half of an escaped pair, which is valid JSON but no text."""
    if "\\u" in text:
        json.dumps(values, ensure_ascii=False).encode()


def _invalid(place: str, error: json.JSONDecodeError) -> DataError:
    near = error.doc[max(error.pos - 10, 0) : error.pos + 20].strip()
    return DataError(
        f"{place} is not valid JSON: {error.msg} at column {error.colno}, near {near!r}; correct or remove "
        "the line."
    )


def _unusable(place: str, error: BaseException) -> DataError:
    return DataError(f"{place} is not usable JSON: {first_line(error)}; correct or remove the line.")


def _object(values: Any, place: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise DataError(
            f"{place} must be a JSON object with named columns, got {kind_of(values)}; write rows as "
            '{"column": value}.'
        )
    return values
