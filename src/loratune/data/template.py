"""Prompt templates with {column} fields, and what a chat template shows of a conversation."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from string import Formatter
from typing import Any, Self

from loratune.data.conversation import Message
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
        """The template that the user would write."""
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
                        f'{kind_of(value)}; write for example "yes" or 3.'
                    )
                pieces.append(str(value))
        return "".join(pieces)


Render = Callable[[Sequence[Message], Sequence[dict[str, Any]]], str]
"""Messages and tools → text."""

_TAGS = re.compile(r"(</?think(?:ing)?>)")
_STRUCTURE = ("role", "tool_call_id", "id")
"""Fields that say how messages belong together; templates check them and need not write them."""


@dataclass(frozen=True, slots=True)
class Part:
    """A text of a conversation."""

    kind: str
    """`content`, `thinking`, `tool_calls`, `tools`, or the name of another field."""
    message: int = -1
    """Number of the message from 0; -1 for the tools."""


@dataclass(slots=True)
class _Marks:
    parts: dict[str, Part] = field(default_factory=dict)

    def of(self, part: Part) -> str:
        mark = f"zq{len(self.parts)}qz"
        self.parts[mark] = part
        return mark


def hidden_parts(
    messages: Sequence[Message], tools: Sequence[dict[str, Any]], render: Render
) -> tuple[list[Part], str]:
    """The parts that do not appear in the text, and the text.

    Marks are letters and digits, which no escaping changes.
    """
    marks = _Marks()
    marked = [_marked(message, number, marks) for number, message in enumerate(messages)]
    tools = [_marked_tool(tool, marks) for tool in tools]
    text = render(marked, tools)
    return [part for mark, part in marks.parts.items() if mark not in text], text


def _marked(message: Message, number: int, marks: _Marks) -> Message:
    copy: Message = {}
    for key, value in message.items():
        if key == "content":
            copy[key] = value if value is None else "".join(_marked_content(value, number, marks))
        elif key == "tool_calls":
            copy[key] = [_marked_call(call, number, marks) for call in value]
        elif key == "reasoning_content":
            copy[key] = marks.of(Part("thinking", number))
        elif key in _STRUCTURE:
            copy[key] = value
        else:
            copy[key] = marks.of(Part(key, number))
    return copy


def _marked_content(content: str, number: int, marks: _Marks) -> Iterator[str]:
    thinking = False
    for piece in _TAGS.split(content):
        if _TAGS.fullmatch(piece):
            thinking = not piece.startswith("</")
            yield piece
        elif piece.strip():
            yield marks.of(Part("thinking" if thinking else "content", number))
        else:
            yield piece


def _marked_call(call: Mapping[str, Any], number: int, marks: _Marks) -> dict[str, Any]:
    part = Part("tool_calls", number)
    arguments = {marks.of(part): marks.of(part)} if call["function"]["arguments"] else {}
    return {**call, "function": {"name": marks.of(part), "arguments": arguments}}


def _marked_tool(tool: Mapping[str, Any], marks: _Marks) -> dict[str, Any]:
    part = Part("tools")
    function = {**tool["function"], "name": marks.of(part)}
    if function.get("description"):
        function["description"] = marks.of(part)
    return {**tool, "function": function}
