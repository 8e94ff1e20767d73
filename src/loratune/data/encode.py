"""Examples → tokens, and which of them are learnt. Knows the tokenizer; does not know where rows come from.

What is learnt follows from lengths, never from ids: the pad token is often the end-of-turn token. The pieces
of a row are tokenised one by one, so that the boundary between prompt and completion is where it will be at
inference. Names of special tokens inside the user's text become these tokens, as in transformers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from loratune.data.chat import Tokenizer
from loratune.data.row import End, Example, Overflow, Segment
from loratune.errors import DataError

Piece = tuple[list[int], list[bool]]
"""Tokens of one row of the table, and which of them are to be predicted (never the first)."""
Run = tuple[list[int], bool]
"""Consecutive tokens, all learnt or none."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """What became of one example."""

    pieces: tuple[Piece, ...]
    """Empty where the row is left out for its length."""
    length: int
    """Tokens before anything was cut."""
    cut: bool = False


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Turns examples into tokens of at most `max_length` per row."""

    tokenizer: Tokenizer
    end_of_turn: int
    max_length: int

    def encode(self, examples: Sequence[Example], overflow: Overflow) -> list[Encoded]:
        """One result per example, in order. Raises `DataError` for a row without a token to learn."""
        rows = [segments for example in examples for segments in example.rows]
        later = [number > 0 for segments in rows for number in range(len(segments))]
        ids = iter(self._ids([part.text for segments in rows for part in segments], later))
        return [
            self._encoded(example, [list(islice(ids, len(row))) for row in example.rows], overflow)
            for example in examples
        ]

    def completion_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of completions as they follow a prompt, each with its end-of-turn token."""
        return [self._appended(ids) for ids in self._ids(texts, [True] * len(texts))]

    @cached_property
    def beginning(self) -> list[int]:
        """What the tokenizer puts before a text by itself: its beginning-of-text token, or nothing."""
        plain = self._plain_ids(["a"])[0]
        full = list(self.tokenizer(["a"], add_special_tokens=True)["input_ids"][0])
        starts = range(len(full) - len(plain) + 1)
        return next((full[:start] for start in starts if full[start : start + len(plain)] == plain), [])

    @cached_property
    def _anchor(self) -> str:
        """What is put before later pieces of a row and taken off their tokens again: a newline where the
        tokenizer begins every text with a space of its own (as SentencePiece does), else nothing."""
        newline, letter, both = self._plain_ids(["\n", "a", "\na"])
        return "\n" if both != newline + letter and both[: len(newline)] == newline else ""

    def _plain_ids(self, texts: list[str]) -> list[list[int]]:
        return list(self.tokenizer(texts, add_special_tokens=False)["input_ids"]) if texts else []

    def _ids(self, texts: Sequence[str], later: Sequence[bool]) -> list[list[int]]:
        """Tokens of each text, in one call; `later` where it continues a row."""
        anchor = self._anchor
        pairs = list(zip(texts, later, strict=True))
        ids = self._plain_ids([anchor + text if after else text for text, after in pairs])
        if not anchor:
            return ids
        skipped = len(self._plain_ids([anchor])[0])
        return [each[skipped:] if after else each for each, after in zip(ids, later, strict=True)]

    def _appended(self, ids: list[int]) -> list[int]:
        return ids if ids and ids[-1] == self.end_of_turn else [*ids, self.end_of_turn]

    def _encoded(self, example: Example, ids: list[list[list[int]]], overflow: Overflow) -> Encoded:
        pieces = [self._piece(example, *row) for row in zip(example.rows, ids, strict=True)]
        if len(pieces) > 1 and pieces[0] == pieces[1]:
            raise DataError(
                f"{example.place}: chosen and rejected must differ, but are the same tokens; remove the row."
            )
        length = max(len(tokens) for tokens, _ in pieces)
        if length <= self.max_length:
            return Encoded(tuple(pieces), length)
        if len(pieces) > 1:
            return Encoded((), length)
        (piece,) = pieces
        if overflow is Overflow.SPLIT:
            return Encoded(tuple(self._split(piece)), length)
        if overflow is Overflow.CUT_PROMPT:
            return self._cut(example, piece)
        return Encoded((), length)

    def _piece(self, example: Example, segments: Sequence[Segment], ids: list[list[int]]) -> Piece:
        """One row before anything is cut."""
        runs: list[Run] = [(self.beginning, False)] if example.begins else []
        last = len(ids) - 1
        for number, (segment, tokens) in enumerate(zip(segments, ids, strict=True)):
            runs += self._runs(segment, tokens, number == last, example.place)
        piece = _joined(runs)
        if not any(piece[1]):
            raise DataError(
                f"{example.place} must have a token to learn, got none; write a completion, or remove the row."
            )
        return piece

    def _runs(self, segment: Segment, tokens: list[int], last: bool, place: str) -> Iterator[Run]:
        if not segment.learned:
            yield tokens, False
        elif segment.end in (End.FIND, End.DEMAND) and self.end_of_turn in tokens:
            after = tokens.index(self.end_of_turn) + 1
            yield tokens[:after], True
            if not last:  # what a template writes after the last turn is never read
                yield tokens[after:], False
        elif segment.end is End.DEMAND:
            raise DataError(
                f"{place}: the tokenizer's chat template must end the assistant's turns with the end-of-turn "
                f"token (id {self.end_of_turn}), but does not; give prompt and completion columns instead."
            )
        elif segment.end is End.APPEND or (segment.end is End.FIND and last):
            yield self._appended(tokens), True
        else:
            yield tokens, True

    def _cut(self, example: Example, piece: Piece) -> Encoded:
        """The row without its prompt's start (its beginning-of-text token stays); one given token must be left."""
        tokens, learned = piece
        length, kept = len(tokens), len(self.beginning) if example.begins else 0
        start = length - (self.max_length - kept)
        completion = learned.index(True)
        if start > completion or (not kept and start == completion):
            return Encoded((), length)
        shortened = (tokens[:kept] + tokens[start:], learned[:kept] + learned[start:])
        return Encoded((shortened,), length, cut=True)

    def _split(self, piece: Piece) -> Iterator[Piece]:
        """Rows that overlap by one token, so that every token but the text's first is learnt exactly once."""
        tokens, learned = piece
        for start in range(0, len(tokens) - 1, self.max_length - 1):
            span = slice(start, start + self.max_length)
            yield tokens[span], [False, *learned[span][1:]]


def _joined(runs: Sequence[Run]) -> Piece:
    tokens: list[int] = []
    learned: list[bool] = []
    for ids, flag in runs:
        tokens.extend(ids)
        learned.extend([flag] * len(ids))
    if learned:
        learned[0] = False
    return tokens, learned
