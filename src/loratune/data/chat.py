"""Rows of turns → segments; only the assistant's turns are learnt. Knows chat templates, not tokens.

Templates rarely mark the assistant's words, so they are found by rendering: a turn begins where the
conversation before it, with the generation prompt, ends; it ends where the conversation up to it does.
What a template does not show is refused, or noted with counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from json import dumps
from typing import Any, ClassVar, Protocol

from loratune.data.chat_remarks import ChatRemarks
from loratune.data.conversation import (
    EXTRA_COLUMNS,
    REASONING,
    Conversation,
    Message,
    read_conversation,
)
from loratune.data.row import End, Example, Overflow, Row, Segment, first_line
from loratune.data.template import Part, hidden_parts
from loratune.errors import DataError


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    @property
    def chat_template(self) -> Any:
        """None where the model has no chat template."""

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> Mapping[str, Any]:
        """`input_ids`: one list of ids per text."""

    def apply_chat_template(
        self,
        conversation: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None,
        tokenize: bool,
        add_generation_prompt: bool,
    ) -> Any:
        """The conversation as text."""


@dataclass(frozen=True, slots=True)
class MessageStyle:
    """How messages are rewritten for a template that does not accept transformers' usual form."""

    text_arguments: bool = False
    """Arguments of tool calls as JSON text instead of a mapping."""
    developer_as_system: bool = False
    empty_content: bool = False
    """An empty text in place of a missing content, for templates that would write it as `None`."""
    parts: bool = False
    """Contents as lists of parts, for templates of models that also read images."""

    def put(self, message: Message) -> Message:
        """The message as the template gets it."""
        put = dict(message)
        if self.developer_as_system and put["role"] == "developer":
            put["role"] = "system"
        if "reasoning_content" in put:
            put |= dict.fromkeys(REASONING, put["reasoning_content"])
        if self.empty_content and put["content"] is None:
            put["content"] = ""
        if self.parts and put["content"] is not None:
            put["content"] = [{"type": "text", "text": put["content"]}]
        if self.text_arguments and "tool_calls" in put:
            put["tool_calls"] = [_with_text_arguments(call) for call in put["tool_calls"]]
        return put


_STYLES = tuple(MessageStyle(*flags) for flags in sorted(product((False, True), repeat=4), key=sum))


def _with_text_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    arguments = dumps(call["function"]["arguments"], ensure_ascii=False)
    return {**call, "function": {**call["function"], "arguments": arguments}}


@dataclass(frozen=True, kw_only=True, slots=True)
class Messages:
    """A conversation, in one column or as a prompt and a completion of turns.

    Without a chat template a turn is `User: …` or `Assistant: …` on a line of its own, the assistant's text
    followed by the end-of-turn token.
    """

    name: ClassVar[str] = "messages"
    overflow: ClassVar[Overflow] = Overflow.LEAVE_OUT

    tokenizer: Tokenizer | None
    columns: tuple[str, ...] = ("messages",)
    remarks: ChatRemarks = field(default_factory=ChatRemarks)

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns that are read where a row has them."""
        return (*self.columns, *EXTRA_COLUMNS)

    @property
    def description(self) -> str:
        how = "the tokenizer's chat template" if self.has_template else "plain 'User: … Assistant: …' lines"
        whose = "turns" if len(self.columns) == 1 else f"turns of {self.columns[-1]}"
        return f"{' and '.join(self.columns)} in {how}, learning the assistant's {whose}"

    @property
    def notes(self) -> tuple[str, ...]:
        """What was noticed in the rows read so far."""
        return self.remarks.sentences()

    @property
    def has_template(self) -> bool:
        return bool(getattr(self.tokenizer, "chat_template", None))

    @staticmethod
    def completion(label: str) -> str:
        """Conversations have no labels."""
        return label

    def example(self, row: Row) -> Example:
        """Raises `DataError` for a broken conversation, or a template that cannot show it."""
        conversation = read_conversation(row, self.columns)
        style = self._style(conversation, row.place)
        self.remarks.read(conversation)
        if self.has_template:
            segments = self._templated(conversation, style, row.place)
        else:
            segments = _plain(conversation.messages, conversation.learned)
        # The rendered text may hold today's date: the messages themselves are the identity.
        return Example(segments, conversation.identity, row.place, begins=not self.has_template)

    def _style(self, conversation: Conversation, place: str) -> MessageStyle:
        """The first style in which the template shows everything that must not be lost.

        Raises `DataError` where there is none.
        """
        refusals: list[DataError] = []
        tried: list[list[Message]] = []
        for style in _STYLES if self.has_template else _STYLES[:1]:
            put = [style.put(message) for message in conversation.messages]
            if put in tried:
                continue
            tried.append(put)
            try:
                hidden, text = self._hidden(conversation, style, place)
            except DataError as error:
                refusals.append(error)
                continue
            refusal = _lost(hidden, text, conversation, style, "chat template" if self.has_template else "")
            if refusal is None:
                self.remarks.hidden(hidden, conversation)
                if style.developer_as_system:
                    self.remarks.developers(conversation)
                return style
            refusals.insert(
                0, DataError(f"{place}: {refusal}.")
            )  # what is lost says more than what a template raised
        raise refusals[0]

    def _hidden(self, conversation: Conversation, style: MessageStyle, place: str) -> tuple[list[Part], str]:
        def render(messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> str:
            return self._render([style.put(message) for message in messages], tools, place)

        return hidden_parts(conversation.messages, conversation.tools, render)

    def _render(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]],
        place: str,
        generation: bool = False,
    ) -> str:
        if self.tokenizer is None or not self.has_template:
            return "".join(segment.text for segment in _plain(messages, [True] * len(messages)))
        try:
            text = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=[dict(tool) for tool in tools] or None,
                tokenize=False,
                add_generation_prompt=generation,
            )
        except Exception as error:  # a template may raise anything
            raise DataError(
                f"{place}: the tokenizer's chat template refuses the conversation ({first_line(error)}); "
                "let user and assistant alternate, the user first."
            ) from None
        return str(text)

    def _templated(self, conversation: Conversation, style: MessageStyle, place: str) -> tuple[Segment, ...]:
        messages = [style.put(message) for message in conversation.messages]
        tools = conversation.tools
        whole = self._render(messages, tools, place)
        turns = [turn for turn, learned in enumerate(conversation.learned) if learned]
        words = [(message["content"] or "").strip() for message in conversation.messages]
        starts = [self._start(whole, messages, tools, turn, words[turn], place) for turn in turns]
        segments = []
        position = 0
        for turn, start, following in zip(turns, starts, [*starts[1:], len(whole)], strict=True):
            after = self._render(messages[: turn + 1], tools, place)
            # Some templates render the last turn otherwise than earlier ones (reasoning left out later):
            # there the piece reaches to the next turn, and the end-of-turn token in it marks the end.
            regular = whole.startswith(after)
            end = len(after) if regular else following
            self.remarks.written_before(conversation.messages[turn], whole[start:end])
            segments.append(Segment(whole[position:start]))
            segments.append(Segment(whole[start:end], learned=True, end=End.FIND if regular else End.DEMAND))
            position = end
        return tuple(segments)

    def _start(
        self,
        whole: str,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]],
        turn: int,
        words: str,
        place: str,
    ) -> int:
        """Where the words of an assistant's turn begin in the whole conversation.

        A generation prompt may open a thought that the turn does not have: what both share is the turn's beginning.
        """
        before = self._render(messages[:turn], tools, place, generation=True)
        if whole.startswith(before):
            return len(before)
        given = len(self._render(messages[:turn], tools, place))
        pairs = enumerate(zip(whole, before, strict=False))
        shared = next((i for i, (one, other) in pairs if one != other), len(whole))
        found = whole.find(words, given)
        shared = min(shared, found) if found > given else shared
        if shared <= given:
            raise DataError(
                f"{place}: the tokenizer's chat template must render the messages before turn {turn + 1} as a "
                "prefix of the whole conversation, but does not, so the assistant's words cannot be found; give "
                "prompt and completion columns instead."
            )
        self.remarks.opened(before[shared:])
        return shared


def _lost(
    hidden: Sequence[Part], text: str, conversation: Conversation, style: MessageStyle, template: str
) -> str | None:
    """What must not be lost and is, in words; None where nothing is."""
    it = f"the tokenizer's {template} does" if template else "without a chat template, plain lines do"
    for part in hidden:
        if part.kind == "tools":
            return f"{it} not show the row's tools; take a model whose template does, or remove the column 'tools'"
        message = conversation.messages[part.message]
        if part.kind == "tool_calls":
            return (
                f"{it} not show the tool_calls of message {part.message + 1}, so they cannot be learnt; take a model "
                "whose template does, or write the call into the content and remove tool_calls"
            )
        if part.kind == "content" and "tool_calls" not in message:
            return (
                f"{it} not show the content of message {part.message + 1} (role {message['role']!r}); write it into "
                "a turn of the user or the system"
            )
    missing = not style.empty_content and any(message["content"] is None for message in conversation.messages)
    if missing and "None" in text:
        return f"{it} write a missing content as None; write an empty text in place of null"
    return None


def _plain(messages: Sequence[Message], learned: Sequence[bool]) -> tuple[Segment, ...]:
    segments = []
    separator = ""
    for message, is_learned in zip(messages, learned, strict=True):
        opening = f"{separator}{message['role'].capitalize()}:"
        if is_learned and message["role"] == "assistant":
            segments += [
                Segment(opening),
                Segment(f" {message['content'] or ''}", learned=True, end=End.APPEND),
            ]
        else:
            segments.append(Segment(f"{opening} {message['content'] or ''}"))
        separator = "\n"
    return tuple(segments)
