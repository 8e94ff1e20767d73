"""What the columns mean: rows → examples. Knows shapes of rows; knows neither files nor tokens.

`recognise` says which shape a source has; docs/data.md shows each with an example.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, Protocol

from loratune.data.chat import Messages
from loratune.data.pairs import Pairs
from loratune.data.row import End, Example, Overflow, Row, Segment, kind_of
from loratune.data.sources import Source
from loratune.data.template import Template
from loratune.errors import DataError
from loratune.values import PromptFormat, PromptKind


class Shape(Protocol):
    """How a row becomes an example."""

    @property
    def name(self) -> str:
        """The name that `DataProfile.shape` holds."""

    @property
    def overflow(self) -> Overflow:
        """What happens to rows over the length limit."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that every row must have."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns that are read where a row has them; all others are named in a note."""

    @property
    def description(self) -> str:
        """How rows are read, in words."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was noticed in the rows read so far, a sentence each."""

    def completion(self, label: str) -> str:
        """What the model is to say for the label of an example."""

    def example(self, row: Row) -> Example:
        """Raises `DataError` for a value that breaks the shape's rule."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptCompletion:
    """A prompt and what is to be learnt after it."""

    name: ClassVar[str] = "prompt-completion"
    overflow: ClassVar[Overflow] = Overflow.CUT_PROMPT
    notes: ClassVar[tuple[str, ...]] = ()

    prompt: str | Template = "prompt"
    """A column to take verbatim, or a template."""
    text: str = "completion"
    """The column of the completion."""
    labelled: bool = False
    """Whether completions are few and repeat, so that each counts as a class."""

    @property
    def columns(self) -> tuple[str, ...]:
        prompt = self.prompt.columns if isinstance(self.prompt, Template) else (self.prompt,)
        return (*prompt, self.text)

    @property
    def reads(self) -> tuple[str, ...]:
        return (*self.columns, *(self.prompt.optional if isinstance(self.prompt, Template) else ()))

    @property
    def description(self) -> str:
        prompt = (
            repr(self.prompt.text) if isinstance(self.prompt, Template) else f"from column {self.prompt!r}"
        )
        return f"prompt {prompt}, completion from column {self.text!r}"

    @staticmethod
    def completion(label: str) -> str:
        """The completion itself."""
        return label

    def example(self, row: Row) -> Example:
        completion = text_of(row, self.text)
        if isinstance(self.prompt, Template):
            prompt = self.prompt.render(row)
            if prompt and not prompt[-1].isspace() and not completion[0].isspace():
                completion = f" {completion}"
        else:
            prompt = text_of(row, self.prompt, may_be_empty=True)
        return _prompted(prompt, completion, row.place, completion if self.labelled else None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Classification:
    """A text and the words of its label as completion."""

    name: ClassVar[str] = "classification"
    overflow: ClassVar[Overflow] = Overflow.CUT_PROMPT
    notes: ClassVar[tuple[str, ...]] = ()

    prompt: Template
    label: str
    class_names: Sequence[str] = ()
    """Names of numbered classes."""

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.prompt.columns, self.label)

    @property
    def reads(self) -> tuple[str, ...]:
        return (*self.columns, *self.prompt.optional)

    @property
    def description(self) -> str:
        return f"prompt {self.prompt.text!r}, labels from column {self.label!r}"

    @staticmethod
    def completion(label: str) -> str:
        """The label's words after a space."""
        return f" {label}"

    def example(self, row: Row) -> Example:
        if isinstance(row.values[self.label], list):
            raise DataError(
                f"{row.place}: column {self.label!r} must hold one label, got a list of "
                f"{len(row.values[self.label])}; write one label into each row, or learn the text alone with "
                f"--completion-column {self.prompt.columns[0]}."
            )
        label = label_of(row, self.label, self.class_names)
        prompt = self.prompt.render(row).rstrip(" ")  # the completion brings the space
        return _prompted(prompt, self.completion(label), row.place, label)


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """Plain text, all of it learnt."""

    name: ClassVar[str] = "text"
    overflow: ClassVar[Overflow] = Overflow.SPLIT
    notes: ClassVar[tuple[str, ...]] = ()

    column: str = "text"

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    @property
    def reads(self) -> tuple[str, ...]:
        return self.columns

    @property
    def description(self) -> str:
        return f"plain text of {self.column}"

    @staticmethod
    def completion(label: str) -> str:
        """Texts have no labels."""
        return label

    def example(self, row: Row) -> Example:
        text = text_of(row, self.column)
        return Example((Segment(text, learned=True, end=End.APPEND),), text, row.place)


def text_of(row: Row, column: str, may_be_empty: bool = False) -> str:
    """The column's text. Raises `DataError` where it is none, or is blank."""
    value = row.values[column]
    if not isinstance(value, str):
        raise DataError(
            f'{row.place}: {column!r} must be text, got {kind_of(value)}; write for example "yes".'
        )
    if not may_be_empty and not value.strip():
        raise DataError(
            f"{row.place}: {column!r} must not be empty, got {value!r}; write text, or remove the row."
        )
    return value


def label_of(row: Row, column: str, class_names: Sequence[str] = ()) -> str:
    """The label's words: text with underscores as spaces, a number's class name, or the number itself."""
    value = row.values[column]
    if isinstance(value, int) and class_names:
        if not 0 <= value < len(class_names):
            raise DataError(
                f"{row.place}: {column!r} must be a class from 0 to {len(class_names) - 1}, got {value}; "
                "remove rows without a label."
            )
        value = class_names[value]
    elif isinstance(value, int):
        value = str(value).lower()
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            f"{row.place}: label {column!r} must be text or a whole number, got {kind_of(value)}; "
            'write for example "spam".'
        )
    return " ".join(value.replace("_", " ").split())


def _prompted(prompt: str, completion: str, place: str, label: str | None = None) -> Example:
    segments = (Segment(prompt), Segment(completion, learned=True, end=End.APPEND))
    return Example(segments, f"{len(prompt)}:{prompt}{completion}", place, label)


def examples(shape: Shape, source: Source, unread: Counter[str] | None = None) -> Iterator[Example]:
    """All rows of a source. Raises `DataError` for the rows that lack a column.

    `unread` counts the rows in which a column that is not read holds something.
    """
    rows = iter(source)
    read = set(shape.reads)
    for row in rows:
        if not _complete(shape, row):
            raise _incomplete(shape, [row, *islice((each for each in rows if not _complete(shape, each)), 5)])
        if unread is not None:
            unread.update(column for column in filled(row) if column not in read)
        yield shape.example(row)


def filled(row: Row) -> list[str]:
    """The columns of a row that hold something."""
    return [column for column, value in row.values.items() if value not in (None, "", [], {})]


def check_classes(shape: Shape, labels: Sequence[str]) -> None:
    """Raise `DataError` where a classification has nothing to tell apart."""
    if len(labels) == 1 and shape.name == Classification.name:  # that of a classifier's rows, too
        raise DataError(
            f"classification must have at least two classes, got only {labels[0]!r} in column "
            f"{shape.columns[-1]!r}; add rows of other classes."
        )


def _complete(shape: Shape, row: Row) -> bool:
    return all(column in row.values for column in shape.columns)


def _incomplete(shape: Shape, rows: Sequence[Row]) -> DataError:
    first = rows[0]
    missing = [column for column in shape.columns if column not in first.values]
    lines = [row.place.rpartition(":")[2].partition(", row")[0] for row in rows if ":" in row.place]
    others = ", ".join((lines or [row.place for row in rows])[1:5])
    also = f" (so have {others}{' and more' if len(rows) > 5 else ''})" if others else ""
    return DataError(
        f"{first.place} has no column {' or '.join(map(repr, missing))}{also}; its columns are "
        f"{', '.join(first.values) or 'none'}: add the column or remove the rows."
    )


Chat = Callable[[list[dict[str, str]]], str]
"""Renders a conversation with the tokenizer's chat template and its generation prompt."""


def prompt_format(shape: Shape) -> PromptFormat:
    """The prompt format of a shape that `recognise` found."""
    if isinstance(shape, Messages):
        return PromptFormat(kind=PromptKind.CHAT if shape.has_template else PromptKind.TURNS)
    if isinstance(shape, Text):
        return PromptFormat(kind=PromptKind.TEXT)
    if isinstance(shape, Pairs) and shape.turns:
        return PromptFormat(kind=PromptKind.CHAT if shape.has_template else PromptKind.TURNS)
    prompt = getattr(shape, "prompt", None)
    if not isinstance(prompt, Template):
        return PromptFormat(kind=PromptKind.VERBATIM)
    label = isinstance(shape, Classification)
    return PromptFormat(kind=PromptKind.LABEL if label else PromptKind.TEMPLATE, template=prompt.text)


def render_prompt(given: PromptFormat, values: str | Mapping[str, Any], chat: Chat) -> str:
    """The text that a model is given before it completes.

    `values`: the text of the template's only field, or the fields by name where it has several.
    Raises `DataError` where they do not fit the template.
    """
    if given.template:
        template = Template.parse(given.template)
        text = template.render(Row(_fields(template.columns, values), "the text"))
        return text.rstrip(" ") if given.kind is PromptKind.LABEL else text
    if not isinstance(values, str):
        raise DataError(f"the text must be plain for rows read as {given.kind}, got fields; give the text.")
    if given.kind is PromptKind.CHAT:
        return chat([{"role": "user", "content": values}])
    return f"User: {values}\nAssistant:" if given.kind is PromptKind.TURNS else values


def _fields(columns: Sequence[str], values: str | Mapping[str, Any]) -> Mapping[str, Any]:
    names = list(dict.fromkeys(columns))
    if isinstance(values, str) and len(names) == 1:
        return {names[0]: values}
    if isinstance(values, str) or not set(names) <= set(values):
        wanted = ", ".join(f'"{name}": "…"' for name in names)
        raise DataError(
            f"the template has the fields {', '.join(names)}, got "
            f"{'one text' if isinstance(values, str) else ', '.join(values) or 'none'}; "
            f"give a JSON object: '{{{wanted}}}'."
        )
    return values
