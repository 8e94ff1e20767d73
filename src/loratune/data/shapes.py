"""What the columns mean: rows → examples. Knows shapes of rows; knows neither files nor tokens.

The shapes, in the order in which they are looked for when no column is named:

    messages              a conversation; the assistant's turns are learnt
    prompt + completion   used verbatim, joined without anything between
    text + label          classification: "{text}\\nLabel:" → " " + the label's words (underscores to spaces);
                          the label may also be called category, class or intent
    text                  every token but the first is learnt; long texts are split into several rows

With a column or a template named by the user, the completion is a label if its column is called so, or if it
has at most 200 different short values, and at least five rows for each on average; else it is free text after
"{prompt}\\n".
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, Protocol

from loratune.data.chat import Messages, Tokenizer
from loratune.data.example import End, Example, Overflow, Segment
from loratune.data.options import DataOptions
from loratune.data.row import Row, kind_of
from loratune.data.sources import Source
from loratune.data.template import Template
from loratune.errors import DataError

LABEL_COLUMNS = ("label", "category", "class", "intent")
MOST_LABELS = 200
LARGEST_LABEL_SHARE = 0.2
LONGEST_LABEL = 64


class Shape(Protocol):
    """How a row becomes an example."""

    @property
    def name(self) -> str:
        """As `DataProfile.shape`."""

    @property
    def overflow(self) -> Overflow:
        """What happens to rows over the length limit."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that every row must have."""

    @property
    def description(self) -> str:
        """How rows are read, in words."""

    def example(self, row: Row) -> Example:
        """Raises `DataError` for a value that breaks the shape's rule."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptCompletion:
    """A prompt and what is to be learnt after it."""

    name: ClassVar[str] = "prompt-completion"
    overflow: ClassVar[Overflow] = Overflow.CUT_PROMPT

    prompt: str | Template = "prompt"
    """A column to take verbatim, or a template."""
    completion: str = "completion"

    @property
    def columns(self) -> tuple[str, ...]:
        prompt = self.prompt.columns if isinstance(self.prompt, Template) else (self.prompt,)
        return (*prompt, self.completion)

    @property
    def description(self) -> str:
        prompt = repr(self.prompt.text) if isinstance(self.prompt, Template) else self.prompt
        return f"prompt {prompt}, completion {self.completion}"

    def example(self, row: Row) -> Example:
        completion = text_of(row, self.completion)
        if isinstance(self.prompt, Template):
            prompt = self.prompt.render(row)
            if prompt and not prompt[-1].isspace() and not completion[0].isspace():
                completion = f" {completion}"
        else:
            prompt = text_of(row, self.prompt, may_be_empty=True)
        return _prompted(prompt, completion, row.place)


@dataclass(frozen=True, kw_only=True, slots=True)
class Classification:
    """A text and the words of its label as completion."""

    name: ClassVar[str] = "classification"
    overflow: ClassVar[Overflow] = Overflow.CUT_PROMPT

    prompt: Template
    label: str
    class_names: Sequence[str] = ()
    """Names of numbered classes."""

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.prompt.columns, self.label)

    @property
    def description(self) -> str:
        return f"prompt {self.prompt.text!r}, labels from column {self.label!r}"

    def example(self, row: Row) -> Example:
        label = label_of(row, self.label, self.class_names)
        prompt = self.prompt.render(row).rstrip(" ")  # the completion brings the space
        return _prompted(prompt, completion_of(label), row.place, label)


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """Plain text, all of it learnt."""

    name: ClassVar[str] = "text"
    overflow: ClassVar[Overflow] = Overflow.SPLIT

    column: str = "text"

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    @property
    def description(self) -> str:
        return f"plain text of {self.column}"

    def example(self, row: Row) -> Example:
        text = text_of(row, self.column)
        return Example((Segment(text, learned=True, end=End.APPEND),), text, row.place)


def completion_of(label: str) -> str:
    """What the model is to say for a label."""
    return f" {label}"


def text_of(row: Row, column: str, may_be_empty: bool = False) -> str:
    """The column's text. Raises `DataError` where it is none, or is blank."""
    value = row.values[column]
    if not isinstance(value, str):
        raise DataError(f"{row.place}: {column!r} must be text, got {kind_of(value)}; correct the row.")
    if not may_be_empty and not value.strip():
        raise DataError(
            f"{row.place}: {column!r} must not be empty, got {value!r}; correct or remove the row."
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
            f"{row.place}: label {column!r} must be text or a whole number, got {kind_of(value)}; correct "
            "the row."
        )
    return " ".join(value.replace("_", " ").split())


def _prompted(prompt: str, completion: str, place: str, label: str | None = None) -> Example:
    segments = (Segment(prompt), Segment(completion, learned=True, end=End.APPEND))
    return Example(segments, f"{len(prompt)}:{prompt}{completion}", place, label)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Choice:
    """The columns of the first row, and what the user said about them."""

    source: Source
    options: DataOptions
    columns: tuple[str, ...]
    place: str

    def first_of(self, *names: str) -> str | None:
        return next((name for name in names if name in self.columns), None)

    def refuse(self, rule: str, step: str) -> DataError:
        return DataError(f"{self.place} {rule}, got columns {', '.join(self.columns)}; {step}.")

    def named(self) -> Shape:
        """With at least one of --prompt-column, --completion-column and --template given."""
        given = self.options
        completion = given.completion_column or self.first_of("completion", *LABEL_COLUMNS)
        if completion is None:
            raise self.refuse("must have a completion column", "name it with --completion-column")
        prompt = given.prompt_column or self.first_of("prompt", "text")
        if given.template is None:
            if prompt is None or prompt == completion:
                return Text(column=completion)
            if (prompt, completion) == ("prompt", "completion"):
                return PromptCompletion()
        is_label = is_label_column(self.source, completion)
        if given.template is not None:
            template = Template.parse(given.template)
        else:
            template = Template.around(str(prompt), "\nLabel:" if is_label else "\n")
        if is_label:
            names = self.source.class_names.get(completion, ())
            return Classification(prompt=template, label=completion, class_names=names)
        return PromptCompletion(prompt=template, completion=completion)

    def found(self, tokenizer: Tokenizer) -> Shape:
        """By the names of the columns alone."""
        if "messages" in self.columns:
            return Messages(tokenizer=tokenizer)
        if {"prompt", "completion"} <= set(self.columns):
            return PromptCompletion()
        label = self.first_of(*LABEL_COLUMNS)
        if "text" in self.columns and label is not None:
            names = self.source.class_names.get(label, ())
            return Classification(prompt=Template.around("text", "\nLabel:"), label=label, class_names=names)
        if "text" in self.columns:
            return Text()
        raise self.refuse(
            "must have messages, prompt and completion, text and label, or text",
            "name the columns with --prompt-column and --completion-column",
        )


def recognise(source: Source, options: DataOptions, tokenizer: Tokenizer) -> Shape:
    """The shape of a source's rows, from its first row's columns and the options. Raises `DataError`."""
    first = next(iter(source))
    choice = _Choice(source=source, options=options, columns=tuple(first.values), place=first.place)
    named = options.prompt_column or options.completion_column or options.template
    shape = choice.named() if named else choice.found(tokenizer)
    missing = [column for column in shape.columns if column not in choice.columns]
    if missing:
        raise choice.refuse(
            f"must have {' and '.join(map(repr, missing))}",
            "change --prompt-column, --completion-column or --template",
        )
    return shape


def examples(shape: Shape, source: Source) -> Iterator[Example]:
    """All rows of a source. Raises `DataError` for the rows that lack a column."""
    rows = iter(source)
    for row in rows:
        if not _complete(shape, row):
            raise _incomplete(shape, [row, *islice((each for each in rows if not _complete(shape, each)), 5)])
        yield shape.example(row)


def _complete(shape: Shape, row: Row) -> bool:
    return all(column in row.values for column in shape.columns)


def _incomplete(shape: Shape, rows: Sequence[Row]) -> DataError:
    first = rows[0]
    missing = [column for column in shape.columns if column not in first.values]
    others = ", ".join(row.place.rpartition(":")[2] if ":" in row.place else row.place for row in rows[1:5])
    also = f" (so have {others}{' and more' if len(rows) > 5 else ''})" if others else ""
    return DataError(
        f"{first.place} has no column {' or '.join(map(repr, missing))}{also}; its columns are "
        f"{', '.join(first.values) or 'none'}: add the column or remove the rows."
    )


def is_label_column(source: Source, column: str) -> bool:
    """Whether a completion is one of few classes: by its name, by its type, or by reading its values."""
    if column.lower() in LABEL_COLUMNS or column in source.class_names:
        return True
    if column == "completion":
        return False
    values: set[Any] = set()
    rows = 0
    for row in source:
        value = row.values.get(column)
        if not isinstance(value, str | int) or (isinstance(value, str) and len(value) > LONGEST_LABEL):
            return False
        rows += 1
        values.add(value)
        if len(values) > MOST_LABELS:
            return False
    return len(values) <= LARGEST_LABEL_SHARE * rows
