"""Rows of `messages` → segments; only the assistant's turns are learnt. Knows chat templates, not tokens.

Templates rarely mark the assistant's words, so they are found by rendering: a turn begins where the
conversation before it, with the generation prompt, ends; it ends where the conversation up to it does.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from loratune.data.example import End, Example, Overflow, Segment
from loratune.data.row import Row, first_line, kind_of
from loratune.errors import DataError


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    @property
    def chat_template(self) -> Any:
        """None where the model has no chat template."""

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> Mapping[str, Any]:
        """`input_ids`: one list of ids per text."""

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> Any:
        """The conversation as text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Messages:
    """`messages`: a list of {"role", "content"}.

    Without a chat template a turn is `User: …` or `Assistant: …` on a line of its own, the assistant's text
    followed by the end-of-turn token.
    """

    name: ClassVar[str] = "messages"
    overflow: ClassVar[Overflow] = Overflow.LEAVE_OUT

    tokenizer: Tokenizer
    column: str = "messages"

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    @property
    def description(self) -> str:
        how = "the tokenizer's chat template" if self.has_template else "plain 'User: … Assistant: …' lines"
        return f"{self.column} in {how}, learning the assistant's turns"

    @property
    def has_template(self) -> bool:
        return bool(getattr(self.tokenizer, "chat_template", None))

    def example(self, row: Row) -> Example:
        """Raises `DataError` for a broken conversation, or a template whose prefixes do not hold."""
        messages = self._checked(row)
        segments = self._templated(messages, row.place) if self.has_template else _plain(messages)
        # The rendered text may hold today's date: the messages themselves are the identity.
        identity = json.dumps([[each["role"], each["content"]] for each in messages], ensure_ascii=False)
        return Example(segments, identity, row.place, begins=not self.has_template)

    def _checked(self, row: Row) -> list[dict[str, str]]:
        messages = row.values[self.column]
        if not isinstance(messages, list) or not messages:
            raise DataError(
                f"{row.place}: {self.column!r} must be a list of messages, got "
                f"{'an empty list' if messages == [] else kind_of(messages)}; correct the row."
            )
        for number, message in enumerate(messages, start=1):
            for key in ("role", "content"):
                value = message.get(key) if isinstance(message, dict) else None
                if not isinstance(value, str):
                    raise DataError(
                        f"{row.place}: message {number} must have a {key} that is text, got "
                        f"{kind_of(value)}; "
                        "correct the row."
                    )
            if message["role"] == "assistant" and not message["content"].strip():
                raise DataError(f"{row.place}: message {number} of the assistant is empty; correct the row.")
        roles = [message["role"] for message in messages]
        if roles[0] == "assistant" or "assistant" not in roles:
            raise DataError(
                f"{row.place}: a conversation must have an assistant's turn after another one, got "
                f"{', '.join(roles)}; correct the row."
            )
        return [{"role": message["role"], "content": message["content"]} for message in messages]

    def _render(self, messages: Sequence[dict[str, str]], place: str, generation: bool = False) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=generation
            )
        except Exception as error:  # a template may raise anything
            raise DataError(
                f"{place}: the tokenizer's chat template refuses the conversation ({first_line(error)}); "
                "correct the roles and their order."
            ) from None
        return str(text)

    def _templated(self, messages: list[dict[str, str]], place: str) -> tuple[Segment, ...]:
        whole = self._render(messages, place)
        turns = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
        starts = []
        for turn in turns:
            before = self._render(messages[:turn], place, generation=True)
            if not whole.startswith(before):
                raise DataError(
                    f"{place}: the tokenizer's chat template must render the messages before turn "
                    f"{turn + 1} as a "
                    "prefix of the whole conversation, but does not, so the assistant's words cannot be "
                    "found; give prompt and completion columns instead."
                )
            starts.append(len(before))
        segments = []
        position = 0
        for turn, start, following in zip(turns, starts, [*starts[1:], len(whole)], strict=True):
            after = self._render(messages[: turn + 1], place)
            # Some templates render the last turn otherwise than earlier ones (reasoning left out later):
            # there the piece reaches to the next turn, and the end-of-turn token in it marks the end.
            regular = whole.startswith(after)
            end = len(after) if regular else following
            segments.append(Segment(whole[position:start]))
            segments.append(Segment(whole[start:end], learned=True, end=End.FIND if regular else End.DEMAND))
            position = end
        return tuple(segments)


def _plain(messages: list[dict[str, str]]) -> tuple[Segment, ...]:
    segments = []
    separator = ""
    for message in messages:
        opening = f"{separator}{message['role'].capitalize()}:"
        if message["role"] == "assistant":
            segments += [Segment(opening), Segment(f" {message['content']}", learned=True, end=End.APPEND)]
        else:
            segments.append(Segment(f"{opening} {message['content']}"))
        separator = "\n"
    return tuple(segments)
