"""What is noticed while conversations are rendered, counted, and said in sentences at the end."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from loratune.data.conversation import Conversation, Message
from loratune.data.template import Part

_MOST_SHOWN = 40
"""Characters of a template's own text in a sentence."""


@dataclass(kw_only=True, slots=True)
class ChatRemarks:
    """Counts over all conversations read so far."""

    conversations: int = 0
    messages: int = 0
    turns: int = 0
    """The assistant's."""
    weightless: int = 0
    unanswered: int = 0
    opening: int = 0
    """Conversations that the assistant begins."""
    thinking: int = 0
    beside_calls: int = 0
    developer: int = 0
    fields: Counter[str] = field(default_factory=Counter)
    """Fields that the template does not show."""
    unread: Counter[str] = field(default_factory=Counter)
    before: Counter[str] = field(default_factory=Counter)
    """What the template writes before an answer of its own."""
    open: Counter[str] = field(default_factory=Counter)
    """What the generation prompt ends in and the answer does not begin with."""

    def read(self, conversation: Conversation) -> None:
        """Count a conversation."""
        self.conversations += 1
        self.messages += len(conversation.messages)
        self.turns += sum(message["role"] == "assistant" for message in conversation.messages)
        self.weightless += conversation.unlearned
        self.unanswered += conversation.messages[-1]["role"] != "assistant"
        self.opening += conversation.messages[0]["role"] == "assistant"
        self.unread.update(conversation.unread)

    def hidden(self, parts: Sequence[Part], conversation: Conversation) -> None:
        """Count what the template leaves out, once for each message."""
        for part in set(parts):
            if part.kind == "thinking":
                self.thinking += 1
            elif part.kind == "content":
                self.beside_calls += 1
            else:
                self.fields[part.kind] += 1

    def developers(self, conversation: Conversation) -> None:
        """Count messages that are given as the system's."""
        self.developer += sum(message["role"] == "developer" for message in conversation.messages)

    def written_before(self, message: Message, piece: str) -> None:
        """Count a learnt piece of a plain answer that does not begin with the answer."""
        content = (message["content"] or "").strip()
        if not content or "tool_calls" in message or "reasoning_content" in message:
            return
        before = piece[: max(0, piece.find(content))].strip()
        if before:
            self.before[before] += 1

    def opened(self, text: str) -> None:
        """Count a generation prompt that goes on where the answer does not follow."""
        if text.strip():
            self.open[text.strip()] += 1

    def sentences(self) -> tuple[str, ...]:
        """One for each kind of thing that happened."""
        turns = f"of {self.turns} assistant's turns"
        counted = (
            (self.weightless, f"{{}} {turns} have weight 0: they are read, but not learnt."),
            (
                self.thinking,
                f"The chat template leaves out the thinking of {{}} {turns}: it is neither given nor learnt.",
            ),
            (
                self.beside_calls,
                f"The chat template leaves out the content beside tool_calls in {{}} {turns}.",
            ),
            (
                self.opening,
                f"{{}} of {self.conversations} conversations begin with the assistant's turn: it is given, not learnt.",
            ),
            (self.developer, "{} messages of the role developer are given as system, for the chat template."),
            (
                self.unanswered,
                f"{{}} of {self.conversations} conversations end in a message that is not the assistant's: it is "
                "not learnt, and what follows the last answer is not read.",
            ),
        )
        found = [sentence.format(count) for count, sentence in counted if count]
        found += [
            f"The chat template writes {_short(text)} before the words of {count} {turns}: it is learnt with them."
            for text, count in self.before.most_common()
        ]
        found += [
            f"The chat template's generation prompt ends in {_short(text)}, which {count} {turns} do not begin with."
            for text, count in self.open.most_common()
        ]
        found += [
            f"The field {name!r} of {count} messages is not shown by the chat template."
            for name, count in self.fields.most_common()
        ]
        found += [
            f"The field {name!r} of {count} messages is not read."
            for name, count in self.unread.most_common()
        ]
        return tuple(found)


def _short(text: str) -> str:
    return repr(text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + "…")
