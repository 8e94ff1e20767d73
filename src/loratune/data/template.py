"""Prompt templates with {column} fields, and nothing else of Python's format strings."""

from dataclasses import dataclass
from string import Formatter
from typing import Self

from loratune.data.row import Row, kind_of
from loratune.errors import DataError


@dataclass(frozen=True, slots=True)
class Template:
    """Literal text and column names in turn. A field is replaced by the column's text, never evaluated."""

    parts: tuple[tuple[str, str | None], ...]
    optional: frozenset[str] = frozenset()
    """Columns that a row may leave empty or lack; the literal text before them is then left out too."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """`{{` and `}}` are braces; a backslash with n or t (as a shell passes it) is a newline or a tab.

        `{column?}` is an optional column.
        """
        text = text.replace("\\n", "\n").replace("\\t", "\t")
        try:
            parsed = list(Formatter().parse(text))
        except ValueError as error:
            raise DataError(
                f"template {text!r} is not valid: {error}; write {{column}}, and braces as {{{{ and }}}}."
            ) from None
        for _, column, specification, conversion in parsed:
            if specification or conversion:
                raise DataError(
                    f"template {text!r} may hold plain {{column}} fields only, got formatting in "
                    f"{{{column}}}; remove it."
                )
        parts = tuple((literal, column and column.removesuffix("?")) for literal, column, _, _ in parsed)
        optional = frozenset(column[:-1] for _, column, _, _ in parsed if column and column.endswith("?"))
        if not any(column is not None for _, column in parts):
            raise DataError(f"template {text!r} must hold at least one {{column}} field, got none; add one.")
        return cls(parts, optional)

    @classmethod
    def around(cls, column: str, after: str) -> Self:
        """The column's text followed by a fixed text."""
        return cls((("", column), (after, None)))

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that every row must have."""
        return tuple(column for _, column in self.parts if column is not None and column not in self.optional)

    @property
    def text(self) -> str:
        """As the user would write it."""
        return "".join(
            literal.replace("{", "{{").replace("}", "}}") + self._field(column)
            for literal, column in self.parts
        )

    def _field(self, column: str | None) -> str:
        if column is None:
            return ""
        return f"{{{column}?}}" if column in self.optional else f"{{{column}}}"

    def render(self, row: Row) -> str:
        """Raises `DataError` for a value that is neither text nor a number."""
        pieces = []
        for literal, column in self.parts:
            if column in self.optional and row.values.get(column) in (None, ""):
                continue
            pieces.append(literal)
            if column is not None:
                value = row.values[column]
                if not isinstance(value, str | int | float):
                    raise DataError(
                        f"{row.place}: {column!r} must be text or a number for the template, got "
                        f"{kind_of(value)}; correct the row."
                    )
                pieces.append(str(value))
        return "".join(pieces)
