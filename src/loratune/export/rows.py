"""Rows of tokens back to text, in the shapes that trainers read; each is checked by reading it as they do.

A row's tokens were made piece by piece (prompt, completion, turns); trainers cut text at other places. So every
row says whether the trainer gets the same tokens from it. Knows tokenizers by protocol; no files, no targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar, Protocol

from loratune.data.table import TokenTable

BATCH = 512
IGNORED = -100
"""Label of a token that is not learnt, in all of these trainers."""


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> Mapping[str, Any]:
        """`input_ids`: one list of ids per text."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        """The text of tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Codec:
    """A tokenizer as trainers call it."""

    tokenizer: Tokenizer
    beginning: tuple[int, ...]
    """Tokens that it puts before a text by itself."""
    end: str
    """The end-of-turn token as text."""

    def text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def ids(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        """`special`: with what the tokenizer adds by itself."""
        return list(self.tokenizer(list(texts), add_special_tokens=special)["input_ids"]) if texts else []

    def ended(self, text: str) -> str:
        """The text with the end-of-turn token, which trainers append where it is missing."""
        return text if text.endswith(self.end) else text + self.end

    def bare(self, ids: list[int]) -> list[int]:
        """The tokens without those that the tokenizer would put there again."""
        own = len(self.beginning)
        return ids[own:] if own and tuple(ids[:own]) == self.beginning else ids


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table."""

    tokens: list[int]
    learned: list[bool]

    @property
    def runs(self) -> list[tuple[bool, list[int]]]:
        """Consecutive tokens that are all learnt or all given."""
        pairs = groupby(zip(self.learned, self.tokens, strict=True), key=lambda pair: pair[0])
        return [(learned, [token for _, token in run]) for learned, run in pairs]

    @property
    def pieces(self) -> list[tuple[bool, list[int]]]:
        """`runs`, but a row that is learnt from its second token on is one piece: nothing predicts the first."""
        return [(True, self.tokens)] if all(self.learned[1:]) else self.runs


@dataclass(frozen=True, slots=True)
class Written:
    """A row as it is written; `values` None: the shape cannot hold it."""

    values: dict[str, Any] | None
    exact: bool
    """Whether the trainer gets the row's own tokens, and learns the same ones."""


class Format(Protocol):
    """A shape of rows that a trainer reads."""

    @property
    def name(self) -> str:
        """Short, as targets distinguish shapes."""

    def write(self, rows: Sequence[Row], codec: Codec) -> list[Written]:
        """One result per row."""


def rows_of(table: TokenTable) -> Iterator[list[Row]]:
    """All rows of a table, some hundreds at a time."""
    for start in range(0, len(table), BATCH):
        pairs = (table.row(i) for i in range(start, min(start + BATCH, len(table))))
        yield [Row(tokens.tolist(), [False, *learned.tolist()[1:]]) for tokens, learned in pairs]


@dataclass(frozen=True, slots=True)
class PromptCompletion:
    """{"prompt", "completion"}, joined without anything between and tokenised as one text."""

    name: ClassVar[str] = "prompt-completion"

    special: bool = True
    """Whether the trainer lets the tokenizer put its own tokens before the text."""

    def write(self, rows: Sequence[Row], codec: Codec) -> list[Written]:
        written = [_NOT_HELD] * len(rows)
        held = {i: row.runs for i, row in enumerate(rows) if [flag for flag, _ in row.runs] == [False, True]}
        texts = [self._texts(given, learned, codec) for (_, given), (_, learned) in held.values()]
        prompts = codec.ids([prompt for prompt, _ in texts], special=self.special)
        wholes = codec.ids([prompt + completion for prompt, completion in texts], special=self.special)
        for i, (prompt, completion), before, whole in zip(held, texts, prompts, wholes, strict=True):
            exact = whole == rows[i].tokens and before == held[i][0][1]
            written[i] = Written({"prompt": prompt, "completion": completion}, exact)
        return written

    def _texts(self, given: list[int], learned: list[int], codec: Codec) -> tuple[str, str]:
        return codec.text(codec.bare(given) if self.special else given), codec.text(learned)


@dataclass(frozen=True, slots=True)
class PreferencePairs:
    """{"prompt", "chosen", "rejected"} of two rows one after another, each answer joined to the prompt as it is."""

    name: ClassVar[str] = "preference"

    def write(self, rows: Sequence[Row], codec: Codec) -> list[Written]:
        """One result per pair."""
        single = PromptCompletion().write(rows, codec)
        found = []
        for chosen, rejected in zip(single[::2], single[1::2], strict=True):
            if chosen.values is None or rejected.values is None:
                found.append(_NOT_HELD)
                continue
            values = {
                "prompt": chosen.values["prompt"],
                "chosen": chosen.values["completion"],
                "rejected": rejected.values["completion"],
            }
            same = chosen.values["prompt"] == rejected.values["prompt"]
            found.append(Written(values, chosen.exact and rejected.exact and same))
        return found


@dataclass(frozen=True, slots=True)
class PlainText:
    """{"text"}, all of it learnt; trainers end it with the end-of-turn token."""

    name: ClassVar[str] = "text"

    def write(self, rows: Sequence[Row], codec: Codec) -> list[Written]:
        texts = [codec.text(codec.bare(row.tokens)) for row in rows]
        read = codec.ids([codec.ended(text) for text in texts], special=True)
        return [
            Written({"text": text}, ids == row.tokens and all(row.learned[1:]))
            for row, text, ids in zip(rows, texts, read, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Segments:
    """{"segments": [{"label": learnt or not, "text"}]}, each tokenised on its own."""

    name: ClassVar[str] = "segments"

    def write(self, rows: Sequence[Row], codec: Codec) -> list[Written]:
        def values(runs: list[tuple[bool, str]]) -> dict[str, Any]:
            return {"segments": [{"label": learned, "text": text} for learned, text in runs]}

        return _written(values, rows, codec)


@dataclass(frozen=True, slots=True)
class Turns:
    """{"messages": given and learnt text in turn}, each tokenised on its own."""

    name: ClassVar[str] = "turns"

    def write(self, rows: Sequence[Row], codec: Codec) -> list[Written]:
        def values(runs: list[tuple[bool, str]]) -> dict[str, Any] | None:
            if not runs[-1][0]:
                return None
            if runs[0][0]:
                runs = [(False, ""), *runs]
            return {
                "messages": [
                    {"role": "assistant" if learned else "user", "content": text} for learned, text in runs
                ]
            }

        return _written(values, rows, codec)


@dataclass(frozen=True, slots=True)
class Pairs:
    """{"prompt", "completion"}, each tokenised on its own."""

    name: ClassVar[str] = "pairs"

    def write(self, rows: Sequence[Row], codec: Codec) -> list[Written]:
        def values(runs: list[tuple[bool, str]]) -> dict[str, Any] | None:
            if len(runs) > 2 or not runs[-1][0]:
                return None
            return {"prompt": runs[0][1] if len(runs) == 2 else "", "completion": runs[-1][1]}

        return _written(values, rows, codec)


@dataclass(frozen=True, slots=True)
class Tokens:
    """{"input_ids", "attention_mask", "labels"}: no text, and nothing to be read otherwise."""

    name: ClassVar[str] = "tokens"

    def write(self, rows: Sequence[Row], codec: Codec) -> list[Written]:
        return [
            Written(
                {
                    "input_ids": row.tokens,
                    "attention_mask": [1] * len(row.tokens),
                    "labels": [
                        token if learned else IGNORED
                        for token, learned in zip(row.tokens, row.learned, strict=True)
                    ],
                },
                True,
            )
            for row in rows
        ]


_NOT_HELD = Written(None, False)


def _written(
    values: Callable[[list[tuple[bool, str]]], dict[str, Any] | None], rows: Sequence[Row], codec: Codec
) -> list[Written]:
    found = ((values(runs), exact) for runs, exact in _piecewise(rows, codec))
    return [_NOT_HELD if each is None else Written(each, exact) for each, exact in found]


def _piecewise(rows: Sequence[Row], codec: Codec) -> list[tuple[list[tuple[bool, str]], bool]]:
    """The pieces of each row as text, and whether each is its own tokens when it is read by itself."""
    runs = [row.pieces for row in rows]
    texts = [[(learned, codec.text(ids)) for learned, ids in each] for each in runs]
    read = iter(codec.ids([text for each in texts for _, text in each], special=False))
    exact = [[next(read) == ids for _, ids in each] for each in runs]
    return [(text, all(each)) for text, each in zip(texts, exact, strict=True)]
