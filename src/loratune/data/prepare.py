"""From what the user names as data to three tables of tokens and their profile.

Puts the room together: sources → shape → tokens (one pass, a batch of rows at a time) → splits → profile. Of
each row only its tokens (on disk where they are many), a digest, its length and its label stay.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loratune.data.chat import Tokenizer
from loratune.data.encode import Encoder
from loratune.data.labelled import Labelled, TextEncoder, recognise_labelled
from loratune.data.pairs import Pairs
from loratune.data.profile import Counts, profile_of
from loratune.data.recognise import recognise, unread_notes
from loratune.data.row import Example
from loratune.data.shapes import Classification, Shape, check_classes, examples, prompt_format
from loratune.data.sources import DataOptions, Source, find_sources
from loratune.data.split import FEWEST_ROWS, Rows, draw, split_off, without_duplicates
from loratune.data.table import StoredRows, StoreWriter, TokenTable
from loratune.errors import DataError
from loratune.values import Classifier, DataProfile, Problem, PromptFormat, PromptKind

BATCH = 512
LONGEST = 2048
"""Limit of a row's tokens where neither the user nor the model sets a lower one."""
_NAMED = 5
"""Classes that a note names."""
_VERBATIM = PromptFormat(kind=PromptKind.VERBATIM)


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedData:
    """Everything that training and evaluation need to know of the data."""

    train: TokenTable
    validation: TokenTable
    test: TokenTable
    profile: DataProfile
    labels: tuple[str, ...] = ()
    """The classes' words in ascending order; tables hold indices into it."""
    label_tokens: tuple[npt.NDArray[np.int32], ...] = ()
    """[classes] tokens of each label as a completion, the end-of-turn token included."""
    notes: tuple[str, ...] = ()
    """What was decided about the data, one sentence each."""
    fingerprint: str = ""
    """16 hex digits that change when the rows of a split, the seed or the length limit change."""
    prompt: PromptFormat = _VERBATIM
    """What the rows put before a completion."""
    classifier: Classifier | None = None
    """What a classifier is to answer; None where completions are learnt."""


@dataclass(kw_only=True)
class _Reading:
    """The sources turned into stored rows, with what was counted on the way."""

    shape: Shape
    encoder: Encoder
    seed: int
    cache: Path | None
    classes: dict[str, int] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    unread: Counter[str] = field(default_factory=Counter)
    answers: dict[str, list[Any]] = field(default_factory=dict)
    """The answers of a classifier's rows by source, where they are not one label."""

    def read(self, source: Source) -> StoredRows:
        """Encode one source. Raises `DataError` where no row is left."""
        writer = StoreWriter(self.cache, self.seed)
        rows, stored, shortest = 0, 0, 0
        for batch in _batches(examples(self.shape, source, self.unread)):
            documents = []
            for example, encoded in zip(batch, self.encoder.encode(batch, self.shape.overflow), strict=True):
                if not encoded.pieces:
                    self.counts.overlong += 1
                    shortest = min(shortest or encoded.length, encoded.length)
                    continue
                self.counts.cut += encoded.cut
                self.counts.split += len(encoded.pieces) > self._pieces
                documents.append((encoded.pieces, self._class_of(example), example.identity))
                if example.answer is not None:
                    self.answers.setdefault(source.name, []).append(self._answer_of(example.answer))
            writer.add(documents)
            rows += len(batch)
            stored += len(documents)
        if not stored:
            raise DataError(
                f"{source.name} must have rows of at most {self.encoder.max_length} tokens, but all "
                f"{rows} are "
                f"longer (the shortest has {shortest}); raise --max-length."
            )
        self.counts.read += rows
        labelled = bool(self.classes) and source.name not in self.answers
        return writer.finish(labelled=labelled, group=self._pieces)

    @property
    def _pieces(self) -> int:
        """Rows of tokens that a row is whole: a pair's two answers."""
        return 2 if isinstance(self.shape, Pairs) else 1

    def _answer_of(self, answer: float | tuple[str, ...]) -> float | list[int]:
        """The number, or the labels' numbers by first appearance."""
        if isinstance(answer, float):
            return answer
        return [self.classes.setdefault(label, len(self.classes)) for label in answer]

    def _class_of(self, example: Example) -> int:
        if example.label is None:
            return -1
        return self.classes.setdefault(example.label, len(self.classes))


def prepare(
    options: DataOptions,
    tokenizer: Tokenizer,
    *,
    end_of_turn: int,
    model_limit: int | None = None,
    cache: Path | None = None,
) -> PreparedData:
    """Read, tokenise, split. Raises `DataError` for anything wrong with the data.

    `end_of_turn` is the id of the token that ends an answer. `model_limit` is the longest row in tokens that
    the model takes (its configuration's, not the tokenizer's: that one is often 1e30). `cache` is a folder
    for the tokens of large data (unnamed files there, gone with the tables); small data stays in memory.
    """
    sources = find_sources(options)
    shape: Shape
    kind: type[Encoder] = Encoder
    if options.kind.has_answers:
        shape, kind = recognise_labelled(sources["train"], options), TextEncoder
    else:
        shape = recognise(sources["train"], options, tokenizer)
    encoder = kind(
        tokenizer=tokenizer, end_of_turn=end_of_turn, max_length=_limit(options.max_length, model_limit)
    )
    reading = _Reading(shape=shape, encoder=encoder, seed=options.seed, cache=cache)
    stored = {split: reading.read(source) for split, source in sources.items()}
    labels = _sorted(reading.classes)
    check_classes(shape, labels)
    if isinstance(shape, Labelled):
        _check_answers(shape, labels, [answer for given in reading.answers.values() for answer in given])
    stored = {split: _numbered(rows, reading.classes, labels) for split, rows in stored.items()}
    if isinstance(shape, Labelled):
        stored = {
            split: _answered(rows, reading.answers.get(sources[split].name), reading.classes, labels)
            for split, rows in stored.items()
        }
    chosen, notes = _choose(stored, options, reading.counts)
    tables = {split: rows.take(documents) for split, (rows, documents) in chosen.items()}
    if labels and not _classifies(shape) and len(_present(tables["train"])) < 2:
        labels, tables = (), {split: replace(table, labels=None) for split, table in tables.items()}
    notes += _class_notes(tables, labels)
    classifier = None
    if isinstance(shape, Labelled):
        classifier, completions = Classifier(problem=shape.problem, labels=labels), []
    else:
        completions = encoder.completion_ids([shape.completion(label) for label in labels])
        labels = _spelt(labels)
    longest = max(int(table.lengths.max()) for table in tables.values())
    return PreparedData(
        **tables,
        profile=profile_of(
            shape=shape.name,
            max_length=options.max_length or longest,
            labels=labels,
            counts=reading.counts,
            **tables,
        ),
        labels=labels,
        label_tokens=tuple(np.array(ids, np.int32) for ids in completions),
        notes=(
            f"Rows are read as {shape.name}: {shape.description}.",
            *_class_kind(shape, labels),
            *shape.notes,
            *unread_notes(reading.unread, sources["train"]),
            *_unused_options(options),
            *notes,
            *_length_notes(reading),
        ),
        fingerprint=_fingerprint(chosen, encoder.max_length),
        prompt=prompt_format(shape),
        classifier=classifier,
    )


def _unused_options(options: DataOptions) -> tuple[str, ...]:
    """A sentence where the prompt is said twice."""
    if options.template is None or options.prompt_column is None:
        return ()
    return (f"--prompt-column {options.prompt_column!r} has no effect: --template says what the prompt is.",)


def _classifies(shape: Shape) -> bool:
    return isinstance(shape, Classification | Labelled)


def _sorted(labels: Iterable[str]) -> tuple[str, ...]:
    """Ascending; whole numbers by their value."""
    if all(label.isdecimal() for label in labels):
        return tuple(sorted(labels, key=int))
    return tuple(sorted(labels))


def _answered(
    rows: StoredRows, answers: list[Any] | None, classes: dict[str, int], labels: tuple[str, ...]
) -> StoredRows:
    """The rows with a classifier's answers: class numbers [rows], labels that hold [rows, C], or numbers [rows]."""
    given: npt.NDArray[Any]
    if answers is None:
        assert rows.table.labels is not None
        given = rows.table.labels.astype(np.int64)
    elif labels:
        number = {classes[label]: place for place, label in enumerate(labels)}
        given = np.zeros((len(answers), len(labels)))
        for row, held in enumerate(answers):
            given[row, [number[each] for each in held]] = 1.0
    else:
        given = np.array(answers, np.float64)
    return replace(rows, table=replace(rows.table, answers=given))


def _check_answers(shape: Labelled, labels: tuple[str, ...], answers: list[Any]) -> None:
    """Raise `DataError` where nothing can be learnt: fewer than two labels, or one answer in all rows."""
    if shape.problem is Problem.SEVERAL and len(labels) < 2:
        got = f"only {labels[0]!r}" if labels else f"an empty list in all {len(answers)} rows"
        raise DataError(
            f"rows with several labels must have at least two different ones, got {got}; add rows, or name "
            f"another column with --completion-column."
        )
    if shape.problem is Problem.SEVERAL and len(set(map(frozenset, answers))) < 2:
        raise DataError(
            f"the labels in column {shape.label!r} must differ, got {', '.join(map(repr, labels[:5]))} together in all "
            f"{len(answers)} rows; add rows, or name another column with --completion-column."
        )
    if shape.problem is Problem.NUMBER and len(set(answers)) < 2:
        raise DataError(
            f"the numbers in column {shape.label!r} must differ, got {answers[0]:g} in all {len(answers)} rows; "
            f"add rows, or name another column with --completion-column."
        )


def _limit(wanted: int | None, model_limit: int | None) -> int:
    if wanted is None:
        return min(LONGEST, model_limit or LONGEST)
    if model_limit is not None and wanted > model_limit:
        raise DataError(
            f"max_length must be at most the model's {model_limit} tokens, got {wanted}; lower --max-length."
        )
    return wanted


def _batches(rows: Iterator[Example]) -> Iterator[list[Example]]:
    while batch := list(islice(rows, BATCH)):
        yield batch


def _numbered(rows: StoredRows, classes: dict[str, int], labels: tuple[str, ...]) -> StoredRows:
    """Classes numbered as they stand in `labels` instead of by first appearance."""
    if rows.table.labels is None:
        return rows
    number = np.empty(len(labels), np.int32)
    number[[classes[label] for label in labels]] = np.arange(len(labels))
    return replace(rows, table=replace(rows.table, labels=number[rows.table.labels]))


def _choose(
    stored: dict[str, StoredRows], options: DataOptions, counts: Counts
) -> tuple[dict[str, tuple[StoredRows, Rows]], list[str]]:
    """Which documents of which source each split gets; notes in words."""
    source = stored["train"]
    digests, labels = source.digests, source.table.labels
    everything = train = np.arange(len(source))
    limits = {"validation": options.validation_rows, "test": options.test_rows}
    chosen: dict[str, tuple[StoredRows, Rows]] = {}
    notes = []
    for split in ("test", "validation"):  # the test rows do not depend on the limit of validation rows
        if split in stored:
            chosen[split] = (stored[split], np.arange(len(stored[split])))
        else:
            rows, train = split_off(digests, labels, train, len(everything), limits[split], split)
            chosen[split] = (source, rows)
            share = len(rows) / len(everything)
            notes.append(
                f"{len(rows)} of {len(everything)} rows ({share:.1%}) are split off as {split} rows."
            )
    if options.train_rows is not None:
        train, _ = draw(digests, labels, train, options.train_rows, leave_one=False)
    chosen["train"] = (source, train)
    seen = [digests[train]]
    for split in ("validation", "test"):
        rows_of, documents = chosen[split]
        documents, removed = without_duplicates(rows_of.digests, documents, *seen)
        counts.duplicates += removed
        limit = limits[split]
        if limit is not None:
            documents, _ = draw(rows_of.digests, rows_of.table.labels, documents, limit, leave_one=False)
        chosen[split] = (rows_of, documents)
        seen.append(rows_of.digests[documents])
        if removed:
            notes.append(f"{removed} {split} rows that stand in another split too are removed from {split}.")
    chosen = {split: chosen[split] for split in ("train", "validation", "test")}
    for split, (_, documents) in chosen.items():
        if len(documents) < FEWEST_ROWS:
            raise DataError(
                f"the {split} split must have at least {FEWEST_ROWS} rows, got {len(documents)} after removing "
                "exact duplicates; add rows."
            )
    return chosen, notes


def _spelt(labels: tuple[str, ...]) -> tuple[str, ...]:
    """Classes as people read them: without the space at an end, where they differ without it too."""
    plain = tuple(label.strip() for label in labels)
    return plain if len(set(plain)) == len(labels) else labels


def _class_kind(shape: Shape, labels: tuple[str, ...]) -> list[str]:
    if not labels or _classifies(shape):
        return []
    return [
        f"Completions are {len(labels)} different ones that repeat: accuracy and macro-F1 are measured too."
    ]


def _present(table: TokenTable) -> set[int]:
    """The classes of a table's rows."""
    return set() if table.row_labels is None else set(np.unique(table.row_labels).tolist())


def _class_notes(tables: dict[str, TokenTable], labels: tuple[str, ...]) -> list[str]:
    """Classes that a split lacks. Raises `DataError` where the training rows have one class alone."""
    if not labels:
        return []
    if tables["train"].labels is None:
        return _label_notes(tables, labels)
    present = _present(tables["train"])
    if len(present) < 2:
        raise DataError(
            f"the {len(tables['train'])} training rows used must have at least two classes, got only "
            f"{labels[min(present)]!r}; raise --train-rows or add rows of other classes."
        )
    notes = []
    for split, table in tables.items():
        held = _present(table)
        absent = [label for number, label in enumerate(labels) if number not in held]
        some = ", ".join(absent[:_NAMED]) + (" and more" if len(absent) > _NAMED else "")
        name = "training" if split == "train" else split
        notes += [f"{len(absent)} of {len(labels)} classes have no {name} row: {some}."] if absent else []
    return notes


def _label_notes(tables: dict[str, TokenTable], labels: tuple[str, ...]) -> list[str]:
    """Labels that no row of a split has."""
    notes = []
    for split, table in tables.items():
        answers = table.row_answers
        assert answers is not None
        absent = [label for label, held in zip(labels, answers.sum(0), strict=True) if not held]
        some = ", ".join(absent[:_NAMED]) + (" and more" if len(absent) > _NAMED else "")
        name = "training" if split == "train" else split
        notes += [f"{len(absent)} of {len(labels)} labels hold in no {name} row: {some}."] if absent else []
    return notes


def _length_notes(reading: _Reading) -> list[str]:
    counts, limit = reading.counts, reading.encoder.max_length
    end = "end of their text" if isinstance(reading.shape, Labelled) else "start of their prompt"
    facts = (
        (counts.overlong, "left out: they do not fit in"),
        (counts.cut, f"used with the {end} cut to fit in"),
        (counts.split, "split into several rows of"),
    )
    return [
        f"{count} of {counts.read} rows are {what} {limit} tokens (--max-length)."
        for count, what in facts
        if count
    ]


def _fingerprint(chosen: dict[str, tuple[StoredRows, Rows]], max_length: int) -> str:
    whole = blake2b(str(max_length).encode(), digest_size=8)
    for rows, documents in chosen.values():
        whole.update(len(documents).to_bytes(8, "big"))
        whole.update(rows.digests[documents].tobytes())
    return whole.hexdigest()
