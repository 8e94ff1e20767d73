"""A run's rows in the shape that another trainer reads: which of its shapes holds them, and what is lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from json import dumps
from pathlib import Path

from loratune.data.table import TokenTable
from loratune.errors import InputError
from loratune.export.rows import Codec, Format, Written, rows_of
from loratune.export.target import Target


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapedRows:
    """Rows in the shape that was chosen for a target."""

    target: str
    shape: Format
    tables: Mapping[str, TokenTable]
    codec: Codec

    def write(self, folder: Path, files: Mapping[str, str]) -> tuple[str, ...]:
        """JSON lines by split; what they lose, a sentence each."""
        losses = []
        for split, table in self.tables.items():
            other = 0
            path = folder / files[split]
            path.parent.mkdir(exist_ok=True)
            with path.open("w", encoding="utf-8") as lines:
                for written in _written(self.shape, table, self.codec):
                    other += not written.exact
                    lines.write(dumps(written.values, ensure_ascii=False) + "\n")
            if other:
                losses.append(
                    f"{other} of {table.examples} {split} rows become other tokens there, as {self.target} tokenises "
                    "them its own way."
                )
        return tuple(losses)


def shaped(target: Target, tables: Mapping[str, TokenTable], codec: Codec) -> ShapedRows:
    """Rows by split in the first shape that holds all of them exactly, else in the last.

    Raises `InputError` where that cannot hold them at all.
    """
    for shape in target.formats:
        if all(each.exact for table in tables.values() for each in _written(shape, table, codec)):
            break
    else:
        held = (each.values for table in tables.values() for each in _written(shape, table, codec))
        if any(values is None for values in held):
            raise InputError(
                f"{target.name} cannot learn several turns of one conversation as they were trained; export --to trl, "
                "axolotl, llamafactory or transformers."
            )
    return ShapedRows(target=target.name, shape=shape, tables=tables, codec=codec)


def _written(shape: Format, table: TokenTable, codec: Codec) -> Iterator[Written]:
    for rows in rows_of(table):
        yield from shape.write(rows, codec)
