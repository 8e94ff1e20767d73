"""Conversations as people store them → messages as chat templates expect them (transformers' convention).

Knows the ways in which a row writes a conversation; knows neither templates nor tokens.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from loratune.data.row import Row, kind_of
from loratune.errors import DataError

Message = dict[str, Any]

COLUMNS = ("messages", "conversations", "conversation")
"""Columns that hold lists of turns, each {"role", "content"} or ShareGPT's {"from", "value"}."""
TOOL_COLUMNS = ("tools", "functions")
EXTRA_COLUMNS = ("system", *TOOL_COLUMNS)
"""Read beside the turns where a row has them."""

ROLES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "assistant",
}
"""Names of roles in use → transformers'; all others stay as they are."""

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Names of a turn's thoughts, in rows and in templates."""
_CONVERSATION = '[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]'
_CALL = '{"name": "search", "arguments": {}}'
_TOOL = '{"name": "search"}'
_READ = {"role", "from", "content", "value", "tool_calls", "function_call", "weight", *REASONING}


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """The turns of one row."""

    messages: tuple[Message, ...]
    """`role`, `content` (None beside calls where the row has none) and where they are there `tool_calls` (arguments as
    a mapping), `reasoning_content`, and other text such as `name`."""
    learned: tuple[bool, ...]
    """Whether each message is learnt."""
    tools: tuple[dict[str, Any], ...] = ()
    """JSON schemas in OpenAI's form."""
    unlearned: int = 0
    """Assistant's turns of weight 0."""
    unread: tuple[str, ...] = ()
    """Fields of messages that are no text and not read."""

    @property
    def identity(self) -> str:
        """What makes two conversations exact duplicates."""
        turns = []
        for message, learned in zip(self.messages, self.learned, strict=True):
            more = {key: value for key, value in message.items() if key not in ("role", "content")}
            if message["role"] == "assistant" and not learned:
                more["weight"] = 0
            turns.append([message["role"], message["content"], *([more] if more else [])])
        return json.dumps([*turns, *([{"tools": self.tools}] if self.tools else [])], ensure_ascii=False)


def read_conversation(row: Row, columns: Sequence[str]) -> Conversation:
    """The turns of all columns, one after the other; of the last column the assistant's are learnt.

    Raises `DataError` for what is no conversation.
    """
    turns: list[_Turn] = []
    for column in columns:
        last = column == columns[-1]
        turns += [
            _turn(each, len(turns) + n, last, row.place) for n, each in enumerate(_list(row, column), start=1)
        ]
    system = row.values.get("system")
    if isinstance(system, str) and system.strip() and turns[0].message["role"] != "system":
        turns.insert(0, _Turn(message={"role": "system", "content": system}))
    roles = [turn.message["role"] for turn in turns]
    if roles[0] == "assistant":  # nothing is there to answer
        turns[0] = replace(turns[0], learned=False, weightless=False)
    if "assistant" not in roles[1:]:
        raise DataError(
            f"{row.place}: a conversation must have an assistant's turn after another one, got "
            f"{', '.join(roles)}; write for example user, assistant."
        )
    if not any(turn.learned for turn in turns):
        raise DataError(
            f"{row.place}: a conversation must have an assistant's turn to learn, got weight 0 for all; "
            "remove the row."
        )
    return Conversation(
        messages=tuple(turn.message for turn in turns),
        learned=tuple(turn.learned for turn in turns),
        tools=_tools(row),
        unlearned=sum(turn.weightless for turn in turns),
        unread=tuple(name for turn in turns for name in turn.unread),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Turn:
    message: Message
    learned: bool = False
    weightless: bool = False
    unread: tuple[str, ...] = ()


def _list(row: Row, column: str) -> list[Any]:
    turns = parsed(row.values[column])
    if not isinstance(turns, list) or not turns:
        raise DataError(
            f"{row.place}: {column!r} must be a list of messages, got "
            f"{'an empty list' if turns == [] else kind_of(turns)}; write for example {_CONVERSATION}."
        )
    return turns


def parsed(value: Any) -> Any:
    """A list or object that a table holds as JSON text; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _turn(turn: Any, number: int, may_be_learned: bool, place: str) -> _Turn:
    where = f"{place}: message {number}"
    if not isinstance(turn, Mapping):
        raise DataError(
            f"{where} must have a role that is text, got {kind_of(None)}; write for example user."
        )
    named = turn.get("role", turn.get("from"))
    if not isinstance(named, str):
        raise DataError(
            f"{where} must have a role that is text, got {kind_of(named)}; write for example user."
        )
    role = ROLES.get(named, named)
    content, thought = _content(turn.get("content", turn.get("value")), where)
    calls = _calls(turn, where)
    if (
        named == "function_call" and not calls and content is not None
    ):  # LLaMA-Factory writes the call as text
        calls, content = _listed_calls(parsed(content), where), None
    thought = next(
        (turn[name] for name in REASONING if turn.get(name) and isinstance(turn[name], str)), thought
    )
    if content is None and not calls:
        raise DataError(f'{where} must have a content that is text, got null; write for example "Hello".')
    if role == "assistant" and not calls and not (content or "").strip():
        raise DataError(
            f"{where} of the assistant must not be empty; write its answer, or remove the message."
        )
    message: Message = {"role": role, "content": content}
    if calls:
        message["tool_calls"] = calls
    if thought and thought.strip():
        message["reasoning_content"] = thought
    others = {
        key: value for key, value in turn.items() if key not in _READ and value not in (None, "", [], {})
    }
    message |= {key: value for key, value in others.items() if isinstance(value, str)}
    unread = [key for key, value in others.items() if not isinstance(value, str)]
    unread += [name for name in REASONING if not isinstance(turn.get(name), str | None)]
    if role == "assistant":
        weight = _weight(turn, where)
        return _Turn(
            message=message, learned=may_be_learned and weight, weightless=not weight, unread=tuple(unread)
        )
    if turn.get("weight"):
        unread.append(f"weight of {role}")
    return _Turn(message=message, unread=tuple(unread))


def _weight(turn: Mapping[str, Any], where: str) -> bool:
    weight = turn.get("weight")
    if weight is not None and weight not in (0, 1):
        raise DataError(f"{where} must have a weight of 0 or 1, got {weight!r:.20}; write 1 to learn it.")
    return weight is None or weight == 1


def _content(content: Any, where: str) -> tuple[str | None, str]:
    """The text of a content and of the thoughts within it: text, null, or a list of parts that are joined."""
    if content is None or isinstance(content, str):
        return content, ""
    if not isinstance(content, list):
        raise DataError(
            f'{where} must have a content that is text, got {kind_of(content)}; write for example "Hello".'
        )
    texts, thoughts = [], []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, Mapping) else None
        if kind in ("text", "input_text", "output_text") and isinstance(text, str):
            texts.append(text)
        elif kind == "thinking" and isinstance(part.get("thinking"), str):
            thoughts.append(part["thinking"])
        else:
            raise DataError(
                f"{where} may have parts of type 'text' only, got {kind!r} in its content; "
                "remove the part or the row."
            )
    return "".join(texts), "".join(thoughts)


def _calls(turn: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Calls in OpenAI's form, with the arguments as a mapping."""
    if turn.get("tool_calls"):
        return _listed_calls(parsed(turn["tool_calls"]), where)
    if turn.get("function_call"):
        return _listed_calls(parsed(turn["function_call"]), where)
    return []


def _listed_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    return [_call(each, where) for each in (calls if isinstance(calls, list) else [calls])]


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DataError(
            f"{where} must name the function of every tool call, got {call!r:.60}; write for example {_CALL}."
        )
    arguments = parsed(function.get("arguments"))
    if arguments in (None, ""):
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise DataError(
            f"{where} must have the arguments of {function['name']!r} as a JSON object, got "
            f"{kind_of(arguments)}; write for example {{}}."
        )
    named = {"type": "function", "function": {"name": function["name"], "arguments": dict(arguments)}}
    return {"id": call["id"], **named} if isinstance(call.get("id"), str) else named


def _tools(row: Row) -> tuple[dict[str, Any], ...]:
    """The tools of a row in OpenAI's form."""
    column = next((name for name in TOOL_COLUMNS if row.values.get(name)), None)
    if column is None:
        return ()
    tools = parsed(row.values[column])
    return tuple(_tool(each, column, row.place) for each in (tools if isinstance(tools, list) else [tools]))


def _tool(tool: Any, column: str, place: str) -> dict[str, Any]:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DataError(
            f"{place}: {column!r} must be a list of functions with a name, got {tool!r:.60}; write for example {_TOOL}."
        )
    return {"type": "function", "function": dict(function)}
