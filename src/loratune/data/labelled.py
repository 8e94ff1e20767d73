"""Rows for a classifier: a text, and the class, the labels or the number that it is to be given.

The text is tokenised as transformers does it for such models, special tokens included; too long ones lose their end.
Knows columns and a tokenizer; no model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import isfinite
from typing import Any, ClassVar

from loratune.data.encode import Encoded, Encoder
from loratune.data.recognise import LABEL_COLUMNS, check_apart
from loratune.data.row import Example, Overflow, Row, Segment, kind_of
from loratune.data.shapes import text_of
from loratune.data.sources import DataOptions, Source
from loratune.data.template import Template
from loratune.errors import DataError
from loratune.values import Problem

_TEXTS = ("text", "sentence", "prompt", "content", "review", "question", "document", "input")
_NUMBERS = ("score", "rating", "target", "value")
_NAMES = {
    Problem.ONE: "classification",
    Problem.SEVERAL: "multi-label",
    Problem.NUMBER: "regression",
}
_WORDS = {
    Problem.ONE: "one class for each row",
    Problem.SEVERAL: "several labels for each row",
    Problem.NUMBER: "a number for each row: the loss is the squared error in units of the labels' variance",
}
_MOST_CLASSES_SHARE = 0.5
"""Share of the rows; with more different values than this they are no classes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelled:
    """A text and its answer."""

    overflow: ClassVar[Overflow] = Overflow.CUT_PROMPT
    notes: ClassVar[tuple[str, ...]] = ()

    prompt: Template
    label: str
    problem: Problem
    class_names: Sequence[str] = ()
    """Names of numbered classes."""

    @property
    def name(self) -> str:
        """The name that `DataProfile.shape` holds."""
        return _NAMES[self.problem]

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.prompt.columns, self.label)

    @property
    def reads(self) -> tuple[str, ...]:
        return (*self.columns, *self.prompt.optional)

    @property
    def description(self) -> str:
        return f"text {self.prompt.text!r}, answers from column {self.label!r}, {_WORDS[self.problem]}"

    @staticmethod
    def completion(label: str) -> str:
        """Nothing is said."""
        return label

    def example(self, row: Row) -> Example:
        columns = self.prompt.columns
        plain = self.prompt.parts == (("", columns[0]),) if columns else False
        text = text_of(row, columns[0]) if plain else self.prompt.render(row)
        answer = self._answer(row)
        example = Example((Segment(text),), f"{text}\0{answer!r}", row.place)
        if self.problem is Problem.ONE:
            return replace(example, label=str(answer))
        return replace(example, answer=answer if isinstance(answer, tuple) else float(answer))

    def _answer(self, row: Row) -> str | float | tuple[str, ...]:
        value = row.values[self.label]
        match self.problem:
            case Problem.NUMBER:
                return _number_of(value, row, self.label)
            case Problem.SEVERAL:
                if not isinstance(value, list):
                    raise DataError(
                        f"{row.place}: {self.label!r} must be a list of labels as in other rows, got "
                        f"{kind_of(value)}; write [] where none holds."
                    )
                return tuple(
                    dict.fromkeys(_class_of(each, row, self.label, self.class_names) for each in value)
                )
            case _:
                return _class_of(value, row, self.label, self.class_names)


def _class_of(value: Any, row: Row, column: str, names: Sequence[str]) -> str:
    """The name of a class, as it is written."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and names:
        if not 0 <= value < len(names):
            raise DataError(
                f"{row.place}: {column!r} must be a class from 0 to {len(names) - 1}, got {value}; "
                "remove rows without a label."
            )
        return str(names[value])
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str) and value.strip():
        return value.strip()
    raise DataError(
        f"{row.place}: label {column!r} must be text or a whole number, got {kind_of(value)}; "
        'write for example "spam", or remove the row.'
    )


def _number_of(value: Any, row: Row, column: str) -> float:
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not isfinite(number):
        raise DataError(
            f"{row.place}: {column!r} must be a finite number as in other rows, got {kind_of(value)}; "
            "write for example 3.5, or remove the row."
        )
    return number


def recognise_labelled(source: Source, options: DataOptions) -> Labelled:
    """Text and answers of a source, by the names of its columns and the values of all its rows. Raises `DataError`."""
    first = next(iter(source))
    columns = tuple(first.values)

    def refuse(what: str, option: str) -> DataError:
        return DataError(
            f"{first.place} must have {what} for --task classification, got columns {', '.join(columns) or 'none'}; "
            f"name it with {option}."
        )

    label = options.completion_column or next(
        (name for name in (*LABEL_COLUMNS, *source.class_names, *_NUMBERS) if name in columns), None
    )
    if label is None or label not in columns:
        raise refuse(
            "a label column" if label is None else f"the label column {label!r}", "--completion-column"
        )
    check_apart(options, label)
    if options.template is not None:
        prompt = Template.parse(options.template)
    else:
        column = options.prompt_column or _text_column(first, label)
        if column is None:
            raise refuse("a text column", "--prompt-column, or write the text with --template")
        prompt = Template((("", column),))
    if missing := [name for name in prompt.columns if name not in columns]:
        raise refuse(" and ".join(map(repr, missing)), "--prompt-column or --template")
    return Labelled(
        prompt=prompt,
        label=label,
        problem=_problem_of(source, label),
        class_names=source.class_names.get(label, ()),
    )


def _text_column(first: Row, label: str) -> str | None:
    texts = [name for name, value in first.values.items() if isinstance(value, str) and name != label]
    return next((name for name in _TEXTS if name in texts), texts[0] if len(texts) == 1 else None)


def _problem_of(source: Source, label: str) -> Problem:
    """The problem by the values of all rows: lists are several labels, numbers with a point a regression, else classes.

    Tables of text have numbers as text: they are numbers where every one is, and one of them has a point.
    """
    rows, values = 0, set()
    lists = points = texts = 0
    for row in source:
        value = row.values.get(label)
        if value is None and label in row.values:
            raise DataError(
                f"{row.place}: {label!r} must hold a label, got null; write the label, or remove the row."
            )
        rows += 1
        lists += isinstance(value, list)
        points += isinstance(value, float)
        texts += isinstance(value, str)
        if isinstance(value, str | int | float):
            values.add(value)
    if lists:
        return Problem.SEVERAL
    if points and not texts:
        return Problem.NUMBER
    if texts == rows and _are_numbers(values):
        return Problem.NUMBER
    if len(values) > max(2, _MOST_CLASSES_SHARE * rows):
        raise DataError(
            f"the labels in column {label!r} of {source.name} must repeat, got {len(values)} different ones in {rows} "
            "rows; write numbers to be predicted with a point (3.0), or name another column with --completion-column."
        )
    return Problem.ONE


def _are_numbers(texts: set[Any]) -> bool:
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        return False
    return all(map(isfinite, numbers)) and any("." in text for text in texts)


@dataclass(frozen=True, kw_only=True)
class TextEncoder(Encoder):
    """Turns texts into tokens as a classifier reads them; the last one is where its answer is asked."""

    def encode(self, examples: Sequence[Example], overflow: Overflow) -> list[Encoded]:
        """One result per example, in order. Raises `DataError` for a text without a token."""
        texts = [example.segments[0].text for example in examples]
        if not texts:
            return []
        found = []
        for example, ids in zip(
            examples, self.tokenizer(texts, add_special_tokens=True)["input_ids"], strict=True
        ):
            if not ids:
                raise DataError(f"{example.place} must have a text, got none; write one, or remove the row.")
            kept = list(ids)
            if len(ids) > self.max_length:
                end = self.ending
                kept = kept[: max(1, self.max_length - len(end))] + end
            supervised = [False] * (len(kept) - 1) + [True]
            found.append(Encoded(((kept, supervised),), len(ids), cut=len(kept) < len(ids)))
        return found

    @cached_property
    def ending(self) -> list[int]:
        """What the tokenizer puts after a text by itself: its end-of-text token, or nothing."""
        plain = self._plain_ids(["a"])[0]
        full = list(self.tokenizer(["a"], add_special_tokens=True)["input_ids"][0])
        return full[len(self.beginning) + len(plain) :]
