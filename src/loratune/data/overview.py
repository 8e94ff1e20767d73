"""What rows are before there is a tokenizer: shape, counts, labels, lengths in characters. Splits nothing."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import median

from loratune.data.chat import Messages
from loratune.data.conversation import read_conversation
from loratune.data.pairs import CHOSEN, REJECTED, Pairs
from loratune.data.recognise import likely_columns, recognise, unread_notes
from loratune.data.row import Example
from loratune.data.shapes import PromptCompletion, Shape, check_classes, examples, filled, prompt_format
from loratune.data.sources import DataOptions, Source, find_sources
from loratune.errors import DataError
from loratune.values.tasks import PREFERENCE


@dataclass(frozen=True, kw_only=True, slots=True)
class Overview:
    """What was seen, all rows read once."""

    options: DataOptions
    """The options given, with the columns that were guessed; the task that of pairs where the rows are some."""
    guessed: bool
    """Whether columns had to be named to read the rows, and nobody did."""
    columns: tuple[str, ...]
    """Columns of the first row."""
    shape: Shape
    rows: dict[str, int]
    """Rows by split, of the splits that come with the data."""
    labels: Counter[str]
    """Rows of all splits by label, the labels as words; empty where there are none."""
    median_characters: float
    longest_characters: int
    notes: tuple[str, ...]
    """Columns that are not read."""

    @property
    def description(self) -> str:
        """How rows are read, in words."""
        if isinstance(self.shape, Messages):
            how = f"conversations of {' and '.join(self.shape.columns)}, in the model's chat template"
        else:
            how = self.shape.description
        return f"Rows are read as {self.shape.name}: {how}."

    @property
    def template(self) -> str | None:
        """The prompt as a template that may be changed; None where naming it would read the rows otherwise."""
        if isinstance(self.shape, PromptCompletion) and self.shape.labelled:  # it would be a classification
            return None
        return prompt_format(self.shape).template or None

    @property
    def completion(self) -> str | None:
        """The column that is learnt; None where there are two of them."""
        return None if isinstance(self.shape, Pairs) else self.shape.columns[-1]


def look(options: DataOptions) -> Overview:
    """Read all rows. Raises `DataError` as `prepare` does, but for what only tokens or splits can show."""
    sources = find_sources(options)
    train = sources["train"]
    read_with, shape = _read_as(train, options)
    unread: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    lengths: list[int] = []
    rows = {}
    for split, source in sources.items():
        before = len(lengths)
        for characters, label in _facts(shape, source, unread):
            lengths.append(characters)
            if label is not None:
                labels[label.strip()] += 1
        rows[split] = len(lengths) - before
    check_classes(shape, tuple(labels))
    return Overview(
        options=read_with,
        guessed=read_with.completion_column != options.completion_column,
        columns=tuple(next(iter(train)).values),
        shape=shape,
        rows=rows,
        labels=labels,
        median_characters=median(lengths),
        longest_characters=max(lengths),
        notes=tuple(unread_notes(unread, train)),
    )


def _read_as(train: Source, options: DataOptions) -> tuple[DataOptions, Shape]:
    """The shape; where the columns' names do not say it, and the user does not, with the likely columns named.

    Rows with two answers are pairs, unless one answer is named or another shape is found.
    """
    two = options.completion_column is None and {CHOSEN, REJECTED} <= set(next(iter(train)).values)
    if two and (options.prompt_column or options.template):
        return _as_pairs(train, options)
    try:
        return options, recognise(train, options, None)
    except DataError:
        if two:
            return _as_pairs(train, options)
        if options.prompt_column or options.completion_column or options.template:
            raise
        prompt, completion = likely_columns(train, options)
        if completion is None:
            raise
        named = replace(options, prompt_column=prompt, completion_column=completion)
        return named, recognise(train, named, None)


def _as_pairs(train: Source, options: DataOptions) -> tuple[DataOptions, Shape]:
    paired = replace(options, task=PREFERENCE.name)
    return paired, recognise(train, paired, None)


def _facts(shape: Shape, source: Source, unread: Counter[str]) -> Iterator[tuple[int, str | None]]:
    """Characters and label of each row. Turns are read and not rendered: what a template shows is the model's."""
    if isinstance(shape, Messages):
        read = set(shape.reads)
        for row in source:
            turns = read_conversation(row, shape.columns).messages
            unread.update(column for column in filled(row) if column not in read)
            yield sum(len(turn["content"] or "") for turn in turns), None
        return
    for example in examples(shape, source, unread):
        yield _characters(example), example.label


def _characters(example: Example) -> int:
    """Of both answers, where there are two, the longer one's."""
    both = (example.segments, example.rejected or ())
    return max(sum(len(segment.text) for segment in segments) for segments in both)
