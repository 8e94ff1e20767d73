"""What a chat template shows of a conversation, found by rendering it with a mark in place of every text."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loratune.data.conversation import Message

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
