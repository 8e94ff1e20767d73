"""Preference pairs: rows of prompt, chosen and rejected, as TRL has them → examples of two answers to one prompt.

Both as plain text, or both as lists of turns. Without a prompt of its own a pair's prompt is what both answers begin
with: the same turns, or the same text (TRL's `extract_prompt`). Knows columns and turns, not tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from loratune.data import conversation
from loratune.data.chat import Messages, Tokenizer
from loratune.data.chat_remarks import ChatRemarks
from loratune.data.row import End, Example, Overflow, Row, Segment, kind_of
from loratune.data.template import Template
from loratune.errors import DataError

CHOSEN, REJECTED = "chosen", "rejected"
_TURNS = ("prompt", "completion")
"""Columns under which the turns of one answer are read as a conversation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Two answers to one prompt, the first of which is preferred."""

    name: ClassVar[str] = "preference"
    overflow: ClassVar[Overflow] = Overflow.LEAVE_OUT

    tokenizer: Tokenizer | None
    prompt: str | Template | None = "prompt"
    """A column (text or turns), a template, or None: what both answers begin with."""
    turns: bool = False
    """Whether answers are lists of messages."""
    remarks: ChatRemarks = field(default_factory=ChatRemarks)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that every row must have."""
        if isinstance(self.prompt, Template):
            return (*self.prompt.columns, CHOSEN, REJECTED)
        return (CHOSEN, REJECTED) if self.prompt is None else (self.prompt, CHOSEN, REJECTED)

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns that are read where a row has them."""
        fields = self.prompt.optional if isinstance(self.prompt, Template) else ()
        return (*self.columns, *fields, *conversation.EXTRA_COLUMNS)

    @property
    def description(self) -> str:
        if self.prompt is None:
            return "column 'chosen' is preferred to column 'rejected'; their prompt is what both begin with"
        shown = (
            repr(self.prompt.text) if isinstance(self.prompt, Template) else f"from column {self.prompt!r}"
        )
        return f"prompt {shown}; column 'chosen' is preferred to column 'rejected'"

    @property
    def notes(self) -> tuple[str, ...]:
        """What was noticed in the rows read so far."""
        return self.remarks.sentences()

    @property
    def has_template(self) -> bool:
        return bool(getattr(self.tokenizer, "chat_template", None))

    @staticmethod
    def completion(label: str) -> str:
        """Pairs have no labels."""
        return label

    def example(self, row: Row) -> Example:
        """Raises `DataError` for answers that are equal, of two kinds, or do not answer the same prompt."""
        answers = [conversation.parsed(row.values[column]) for column in (CHOSEN, REJECTED)]
        if any(isinstance(answer, list) is not self.turns for answer in answers):
            kind = "be lists of messages" if self.turns else "be text"
            raise DataError(
                f"{row.place}: {CHOSEN!r} and {REJECTED!r} must {kind} as in the first row, got "
                f"{kind_of(answers[0])} and {kind_of(answers[1])}; let both {kind}."
            )
        return self._of_turns(row, *answers) if self.turns else self._of_texts(row, *answers)

    def _of_texts(self, row: Row, chosen: Any, rejected: Any) -> Example:
        for column, answer in ((CHOSEN, chosen), (REJECTED, rejected)):
            if not isinstance(answer, str) or not answer.strip():
                raise DataError(
                    f"{row.place}: {column!r} must be text that is not empty, got "
                    f"{kind_of(answer)}; write an answer, or remove the row."
                )
        _check_different(row, chosen, rejected)
        if isinstance(self.prompt, Template):
            prompt = self.prompt.render(row)
            if prompt and not prompt[-1].isspace():
                chosen, rejected = (each if each[0].isspace() else f" {each}" for each in (chosen, rejected))
        elif self.prompt is not None:
            prompt = row.values[self.prompt]
            if not isinstance(prompt, str):
                raise DataError(
                    f"{row.place}: {self.prompt!r} must be text as {CHOSEN!r} is, got {kind_of(prompt)}; write "
                    "text."
                )
        else:
            shared = _shared_text(chosen, rejected)
            _check_shared(row, shared, chosen[:40], rejected[:40])
            prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
        return Example(
            _prompted(prompt, chosen),
            f"{len(prompt)}:{len(chosen)}:{prompt}{chosen}{rejected}",
            row.place,
            rejected=_prompted(prompt, rejected),
        )

    def _of_turns(self, row: Row, chosen: list[Any], rejected: list[Any]) -> Example:
        _check_different(row, chosen, rejected)
        given: Any = None
        if isinstance(self.prompt, Template):
            given = [{"role": "user", "content": self.prompt.render(row)}]
        elif self.prompt is not None:
            given = conversation.parsed(row.values[self.prompt])
        shared = _shared_turns(chosen, rejected)
        if not isinstance(given, list):  # TRL, too, reads a prompt beside whole conversations off these
            if not shared and isinstance(given, str) and given.strip():
                given = [{"role": "user", "content": given}]
            else:
                _check_shared(row, shared, _role_of(chosen), _role_of(rejected))
                given, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
        elif shared:
            raise DataError(
                f"{row.place}: {CHOSEN!r} and {REJECTED!r} must differ from their first message on where the prompt "
                f"is a column of its own, got {shared} equal messages; move them into the prompt."
            )
        talk = Messages(tokenizer=self.tokenizer, columns=_TURNS, remarks=self.remarks)
        first, second = (
            talk.example(replace(row, values={**row.values, "prompt": given, "completion": answer}))
            for answer in (chosen, rejected)
        )
        return replace(
            first,
            identity=f"{len(first.identity)}:{first.identity}{second.identity}",
            rejected=second.segments,
        )


def _prompted(prompt: str, answer: str) -> tuple[Segment, ...]:
    return (Segment(prompt), Segment(answer, learned=True, end=End.APPEND))


def _shared_text(chosen: str, rejected: str) -> int:
    """Letters that both begin with; something is left of each, and a space before it belongs to the answers."""
    most = min(len(chosen), len(rejected)) - 1
    shared = next((i for i in range(most) if chosen[i] != rejected[i]), most)
    return shared - 1 if shared and chosen[shared - 1] == " " else shared


def _shared_turns(chosen: Sequence[Any], rejected: Sequence[Any]) -> int:
    """Turns that both begin with; one at least is left of each."""
    most = min(len(chosen), len(rejected)) - 1
    return next((i for i in range(most) if chosen[i] != rejected[i]), max(0, most))


def _check_different(row: Row, chosen: Any, rejected: Any) -> None:
    if chosen == rejected:
        raise DataError(
            f"{row.place}: {CHOSEN!r} and {REJECTED!r} must differ, got the same answer twice; remove the row."
        )


def _check_shared(row: Row, shared: int, chosen: str, rejected: str) -> None:
    if not shared:
        raise DataError(
            f"{row.place}: {CHOSEN!r} and {REJECTED!r} must begin with the same prompt where there is no column "
            f"'prompt', got {chosen!r} and {rejected!r}; begin both with the prompt, or give it a column."
        )


def _role_of(turns: Sequence[Any]) -> str:
    first = turns[0] if turns else None
    return str(first.get("content", first) if isinstance(first, dict) else first)[:40]
