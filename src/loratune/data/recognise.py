"""Which shape the rows of a source have, by the names and values of the first row's columns.

The shapes, in the order in which they are looked for when no column is named:

    messages              a conversation (also conversations, and prompt + completion of turns)
    prompt + completion   used verbatim, joined without anything between
    instruction + output  Alpaca's: "{instruction}\\n{input?}\\n" → the output; no line for an empty input
    text + label          classification: "{text}\\nLabel:" → " " + the label's words (underscores to spaces);
                          the label may also be called category, class or intent, or be a ClassLabel
    text                  every token but the first is learnt; long texts are split into several rows

With a column or a template named by the user, the completion is a label if its column is called so, or if it
has at most 200 different short values, and at least five rows for each on average; else it is free text after
"{prompt}\\n".
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from loratune.data import conversation
from loratune.data.chat import Messages, Tokenizer
from loratune.data.pairs import CHOSEN, REJECTED, Pairs
from loratune.data.row import Row
from loratune.data.shapes import Classification, PromptCompletion, Shape, Text
from loratune.data.sources import DataOptions, Source
from loratune.data.template import Template
from loratune.errors import DataError

_SINGULAR = ("label", "category", "class", "intent")
LABEL_COLUMNS = (*_SINGULAR, "labels", "categories", "classes", "intents")
MOST_LABELS = 200
LARGEST_LABEL_SHARE = 0.2
LONGEST_LABEL = 64

_ALPACA = Template.parse("{instruction}\n{input?}\n")
_PROMPTS = (
    "prompt",
    "text",
    "question",
    "query",
    "instruction",
    "input",
    "source",
    "document",
    "article",
    "context",
)
_ANSWERS = ("completion", "output", "response", "answer")
_COMPLETIONS = (*_ANSWERS, *LABEL_COLUMNS, "target", "summary", "chosen")
"""An answer comes before a label: rows that have both are asked for the one and sorted by the other."""
_OF_LABELS = {*LABEL_COLUMNS, "target", "sentiment", "topic", "tag", "tags"}
_OF_CONVERSATIONS = {
    *conversation.COLUMNS, *conversation.EXTRA_COLUMNS, *conversation.REASONING,
    "system_prompt", "history", "tool_calls", "weight", "chosen", "rejected",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class _Choice:
    """The first row, and what the user said about its columns."""

    source: Source
    options: DataOptions
    first: Row
    tokenizer: Tokenizer | None

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.first.values)

    def first_of(self, *names: str) -> str | None:
        return next((name for name in names if name in self.columns), None)

    def renamed(self, missing: Sequence[str]) -> str:
        """Advice with a column that is there."""
        if not self.columns:
            return "add the columns"
        if self.options.template:
            return f"name columns that are there, for example --template '{{{self.columns[0]}}}'"
        prompts = self.options.prompt_column in missing
        flag, column = ("prompt", self.columns[0]) if prompts else ("completion", self.columns[-1])
        return f"name columns that are there, for example --{flag}-column {shlex.quote(column)}"

    def refuse(self, rule: str, step: str) -> DataError:
        return DataError(f"{self.first.place} {rule}, got columns {', '.join(self.columns)}; {step}.")

    def named(self) -> Shape:
        """The shape by --prompt-column, --completion-column or --template, of which at least one is given."""
        given = self.options
        completion = given.completion_column or self.first_of(*_COMPLETIONS)
        if completion is None:
            raise self.refuse("must have a completion column", "name it with --completion-column")
        check_apart(given, completion)
        prompt = given.prompt_column or self.first_of("prompt", "text")
        if given.template is None and is_turns(self.first.values.get(completion)):
            asked = (prompt,) if prompt and is_turns(self.first.values.get(prompt)) else ()
            return Messages(tokenizer=self.tokenizer, columns=(*asked, completion))
        if given.template is None:
            if given.prompt_column is None and completion == "output" and "instruction" in self.columns:
                return PromptCompletion(prompt=_ALPACA, text="output")
            if prompt is None or prompt == completion:
                return Text(column=completion)
            if (prompt, completion) == ("prompt", "completion"):
                return PromptCompletion()
        is_label = is_label_column(self.source, completion)
        if given.template is not None:
            template = Template.parse(given.template)
        else:
            template = Template.around(str(prompt), "\nLabel:" if is_label else "\n")
        return (
            self.classified(template, completion)
            if is_label
            else PromptCompletion(prompt=template, text=completion)
        )

    def classified(self, template: Template, label: str) -> Classification:
        return Classification(
            prompt=template, label=label, class_names=self.source.class_names.get(label, ())
        )

    def found(self) -> Shape:
        """The shape by the names of the columns alone, and by lists of turns."""
        values = self.first.values
        turns = self.first_of(*conversation.COLUMNS)
        if turns == "messages" or (turns is not None and is_turns(values[turns])):
            return Messages(tokenizer=self.tokenizer, columns=(turns,))
        if {"prompt", "completion"} <= set(self.columns):
            if is_turns(values["prompt"]) and is_turns(values["completion"]):
                return Messages(tokenizer=self.tokenizer, columns=("prompt", "completion"))
            return PromptCompletion()
        if {"instruction", "output"} <= set(self.columns):
            return PromptCompletion(prompt=_ALPACA, text="output")
        label = self.first_of(*LABEL_COLUMNS, *self.source.class_names)
        if "text" in self.columns:
            return Text() if label is None else self.classified(Template.around("text", "\nLabel:"), label)
        lists = [column for column in self.columns if is_turns(values[column])]
        if len(lists) == 1:
            return Messages(tokenizer=self.tokenizer, columns=(lists[0],))
        if {CHOSEN, REJECTED} <= set(self.columns):
            raise self.refuse(
                "holds a preference pair",
                f"learn from it with --task preference, or from one answer{self.example_of_options()}",
            )
        raise self.refuse(
            "must have messages, prompt and completion, instruction and output, text and label, or text",
            f"name the columns with --prompt-column and --completion-column, or write the prompt with --template"
            f"{self.example_of_options()}",
        )

    def pairs(self) -> Pairs:
        """Pairs of chosen and rejected; the prompt may be another column, a template, or what both begin with."""
        if self.options.completion_column is not None:
            raise DataError(
                f"--completion-column must be left out with --task preference, got "
                f"{self.options.completion_column!r}: the answers are the columns 'chosen' and 'rejected'."
            )
        if missing := [column for column in (CHOSEN, REJECTED) if column not in self.columns]:
            raise self.refuse(
                f"must have {' and '.join(map(repr, missing))} for --task preference",
                "rename the columns to prompt, chosen and rejected",
            )
        check_apart(self.options, CHOSEN, REJECTED)
        turns = isinstance(conversation.parsed(self.first.values[CHOSEN]), list)
        if self.options.template is not None:
            prompt: Template | str | None = Template.parse(self.options.template)
        else:
            prompt = self.options.prompt_column or self.first_of("prompt")
        return Pairs(tokenizer=self.tokenizer, prompt=prompt, turns=turns)

    def example_of_options(self) -> str:
        """Options with which these columns can be read, if there are any."""
        prompt, completion = self.likely()
        if completion is None:
            return ""
        named = "" if prompt is None else f" --prompt-column {shlex.quote(prompt)}"
        plain = " for plain text" if prompt is None and isinstance(self.first.values[completion], str) else ""
        return f", for example{named} --completion-column {shlex.quote(completion)}{plain}"

    def likely(self) -> tuple[str | None, str | None]:
        """Prompt and completion by the columns' names and values, where their names alone do not say it."""
        values = self.first.values
        texts = [column for column, value in values.items() if isinstance(value, str) and value.strip()]
        lists = [column for column, value in values.items() if is_turns(value)]
        if not texts:
            return None, lists[0] if lists else None
        numbers = [name for name in LABEL_COLUMNS if isinstance(values.get(name), int)]
        completion = next((name for name in _COMPLETIONS if name in (*texts, *numbers)), None)
        completion = completion or self._of_few_values()
        if completion is None:
            if len(texts) == 1 and not lists:
                return None, texts[0]
            completion = texts[-1]
        others = [name for name in texts if name != completion]
        return next((name for name in _PROMPTS if name in others), others[0] if others else None), completion

    def _of_few_values(self) -> str | None:
        """A column that looks like a label by its values, one that is called so before others."""
        by_name = sorted(self.columns, key=lambda name: name.lower() not in _OF_LABELS)
        return next((name for name in by_name if has_few_values(self.source, name, fewest=2)), None)


def is_turns(value: Any) -> bool:
    """Whether a value is a list of messages, also as JSON text."""
    value = conversation.parsed(value)
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(each, Mapping) and ("role" in each or "from" in each) for each in value)
    )


def likely_columns(source: Source, options: DataOptions) -> tuple[str | None, str | None]:
    """Prompt and completion to name where columns are not called by usual names; None for what there is not."""
    return _Choice(source=source, options=options, first=next(iter(source)), tokenizer=None).likely()


def recognise(source: Source, options: DataOptions, tokenizer: Tokenizer | None) -> Shape:
    """The shape of a source's rows, from its first row's columns and the options. Raises `DataError`.

    Without a tokenizer conversations are read as if there were no chat template.
    """
    choice = _Choice(source=source, options=options, first=next(iter(source)), tokenizer=tokenizer)
    named = options.prompt_column or options.completion_column or options.template
    if options.kind.has_pairs:
        shape: Shape = choice.pairs()
    else:
        shape = choice.named() if named else choice.found()
    wanted = shape.reads if options.template and not isinstance(shape, Pairs) else shape.columns
    missing = [column for column in wanted if column not in choice.columns]
    if missing:
        raise choice.refuse(
            f"must have {' and '.join(map(repr, missing))}",
            choice.renamed(missing),
        )
    if isinstance(shape, PromptCompletion) and has_few_values(source, shape.text, fewest=2):
        return replace(shape, labelled=True)
    return shape


def check_apart(options: DataOptions, *answers: str) -> None:
    """Raise `DataError` where the prompt that the user named shows the answer."""
    if options.template is not None:
        option, template = "--template", Template.parse(options.template)
        shown: set[str | None] = {*template.columns, *template.optional}
    else:
        option, shown = "--prompt-column", {options.prompt_column}
    for answer in answers:
        if answer in shown:
            raise DataError(
                f"{option} must not show what is to be learnt, got the column {answer!r}, which is the answer itself; "
                "name another column."
            )


def is_label_column(source: Source, column: str) -> bool:
    """Whether a completion is one of few classes: by its name, by its type, or by reading its values."""
    if column.lower() in LABEL_COLUMNS or column in source.class_names:
        return True
    return column != "completion" and has_few_values(source, column)


def has_few_values(source: Source, column: str, fewest: int = 1) -> bool:
    """Whether a column has few different short values that repeat."""
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
    return fewest <= len(values) <= LARGEST_LABEL_SHARE * rows


def unread_notes(unread: Mapping[str, int], source: Source) -> Iterator[str]:
    """Columns that hold something and are not read; those that look important have a sentence of their own."""
    rest = []
    for column, rows in unread.items():
        name = column.lower()
        if name in _OF_LABELS or column in source.class_names:
            yield f"The column {column!r} of {rows} rows looks like a label and is not read."
        elif name in _OF_CONVERSATIONS:
            yield f"The column {column!r} of {rows} rows looks like a part of a conversation and is not read."
        else:
            rest.append(column)
    if rest:
        yield f"Columns not read: {', '.join(rest)}."
