"""A closer look at prepared rows, in seconds: kind of task, redundancy, near-duplicates, leaks, likely mistakes.

Reads a sample of the rows back as text. Knows tables and the tokenizer, not the model's weights.
"""

import lzma
import re
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from loratune.data.duplicates import near_duplicates
from loratune.data.prepare import PreparedData
from loratune.data.table import TokenTable
from loratune.errors import DataError
from loratune.values import Survey, TaskKind

Texts = Sequence[tuple[str, str]]
"""(what is given, what is learnt) of some rows."""

_WORKING = re.compile(
    r"\d\s*[-+*/×÷]\s*\$?\d[^\n]*=|####|\\boxed|<think>|\bstep \d|\btherefore\b", re.IGNORECASE
)
"""Signs of worked solutions: arithmetic with its result, the marks of usual answers, steps, conclusions."""
_WORD = re.compile(r"\w+")
_WORKED_SHARE = 0.5
_COPIED_SHARE = 0.75
_FOREIGN_SHARE = 0.1
_PARALLEL = 0.8
"""Correlation of the two sides' lengths from which they are taken for translations."""
_FEWEST_FOR_PARALLEL = 10


def guess_kind(shape: str, labels: int, texts: Texts) -> tuple[TaskKind, str]:
    """The kind of task and why; `texts` are some training rows."""
    if labels:
        return TaskKind.CLASSIFICATION, f"every completion is one of {labels} labels"
    if shape == "text":
        return TaskKind.DOMAIN_TEXT, "plain text, all of it learnt"
    worked = float(np.mean([bool(_WORKING.search(learned)) for _, learned in texts]))
    if worked >= _WORKED_SHARE:
        return TaskKind.REASONING, f"{worked:.0%} of the completions show their working"
    sides = [(_words(given), _words(learned)) for given, learned in texts]
    copied = median(_share_within(learned, given) for given, learned in sides)
    shorter = median(len(learned) / max(len(given), 1) for given, learned in sides)
    if copied >= _COPIED_SHARE and shorter <= 0.5:
        return (
            TaskKind.EXTRACTION,
            f"in the median row {copied:.0%} of the completion's words stand in its prompt, which is "
            f"{1 / max(shorter, 1e-3):.0f} times as long",
        )
    parallel = _parallel(texts)
    if copied <= _FOREIGN_SHARE and parallel >= _PARALLEL and 0.4 <= shorter <= 2.5:
        return (
            TaskKind.TRANSLATION,
            f"prompt and completion are as long as each other (correlation {parallel:.2f}) and share almost no words",
        )
    return TaskKind.INSTRUCTION, "prompts with free answers that neither copy them nor show a working"


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _share_within(words: Sequence[str], given: Sequence[str]) -> float:
    known = set(given)
    return sum(word in known for word in words) / len(words) if words else 0.0


def _parallel(texts: Texts) -> float:
    """Correlation of the sides' lengths in characters; 0 for few rows or a side of constant length."""
    lengths = np.array([(len(given), len(learned)) for given, learned in texts], np.float64)
    if len(lengths) < _FEWEST_FOR_PARALLEL or (lengths.std(axis=0) == 0).any():
        return 0.0
    matrix: npt.NDArray[np.float64] = np.atleast_2d(np.corrcoef(lengths.T))
    return float(matrix[0, 1])


_TEXT_ROWS = 200
_COMPRESSED_BYTES = 2**19
_CUT = 160
"""Characters of an example of a leak."""
_SAME_TAIL = 4
_MOST = 0.5
"""Share of the sampled rows from which a sign counts as a mistake of all of them."""
_TOLERATED_LEAKS = 0.01
"""Share of a split's rows below which leaks are counted, but move no result."""
_MARKERS = ("<|im_start|>", "<|start_header_id|>", "<start_of_turn>", "<|user|>", "<|assistant|>", "[INST]")
"""What chat templates of well-known families begin a turn with."""


class Decoder(Protocol):
    """What is used of a transformers tokenizer."""

    @property
    def bos_token_id(self) -> int | None:
        """The beginning-of-text token, if it has one."""

    def get_vocab(self) -> dict[str, int]:
        """Tokens, added ones included."""

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> Any:
        """Text of ids."""


def survey(data: PreparedData, tokenizer: Decoder, *, seed: int = 0) -> Survey:
    """What the rows show; never raises for strange data, which is reported in `warnings`."""
    rows = sorted(np.random.default_rng(seed).permutation(len(data.train))[:_TEXT_ROWS].tolist())
    texts = [_sides(data.train, row, tokenizer) for row in rows]
    kind, reason = guess_kind(data.profile.shape, len(data.labels), texts)
    splits = {"validation": data.validation, "test": data.test}
    found, pairs = near_duplicates(data.train, splits, seed=seed)
    examples = tuple(
        (_text(splits[name], row, tokenizer), _text(data.train, twin, tokenizer)) for name, row, twin in pairs
    )
    warnings = (*_mistakes(data.train, rows, tokenizer), *_leaks(found.leaks, found.threshold))
    return Survey(
        kind=kind,
        kind_reason=reason,
        compression_ratio=compression_ratio(data.train, tokenizer, seed=seed),
        near_duplicates=replace(found, examples=examples),
        warnings=warnings,
    )


def compression_ratio(table: TokenTable, tokenizer: Decoder, *, seed: int = 0) -> float:
    """Bytes of the rows' text over their size under LZMA, on about half a megabyte: 1 is noise, 2–4 usual text."""
    pieces, size = [], 0
    for row in np.random.default_rng(seed).permutation(len(table)):
        piece = str(tokenizer.decode(table.row(int(row))[0].tolist(), skip_special_tokens=True)).encode()
        pieces.append(piece)
        size += len(piece)
        if size >= _COMPRESSED_BYTES:
            break
    text = b"\n".join(pieces)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6}]
    return len(text) / max(1, len(lzma.compress(text, format=lzma.FORMAT_RAW, filters=filters)))


def _sides(table: TokenTable, row: int, tokenizer: Decoder) -> tuple[str, str]:
    """(what is given, what is learnt) as text; of a conversation all turns of either side together."""
    tokens, learned = table.row(row)
    given, learnt = (
        str(tokenizer.decode(tokens[flags].tolist(), skip_special_tokens=True))
        for flags in (~learned, learned)
    )
    return given, learnt


def _text(table: TokenTable, row: int, tokenizer: Decoder) -> str:
    return str(tokenizer.decode(table.row(row)[0].tolist(), skip_special_tokens=True))[:_CUT]


def _mistakes(table: TokenTable, rows: Sequence[int], tokenizer: Decoder) -> list[str]:
    """Signs of a wrong template or mask that most of the sampled rows bear."""
    pairs = [table.row(row) for row in rows]
    enough = _MOST * len(pairs)
    found = []
    begin = tokenizer.bos_token_id
    if begin is not None and sum((tokens[:2] == begin).sum() == 2 for tokens, _ in pairs) > enough:
        found.append(
            "rows begin with two beginning-of-text tokens: the data holds one already; take it out of the prompts"
        )
    if sum(_padded(tokens, learned) for tokens, learned in pairs) > enough:
        found.append(
            "rows end in a run of one learnt token, as padding does; remove the padding from the data"
        )
    known = tokenizer.get_vocab()
    texts = [str(tokenizer.decode(tokens.tolist())) for tokens, _ in pairs]
    found += [
        f"rows hold {marker}, which this tokenizer does not know as a token: the chat format of another model; "
        "give messages, or prompts without it"
        for marker in _MARKERS
        if marker not in known and sum(marker in text for text in texts) > enough
    ]
    return found


def _padded(tokens: np.ndarray, learned: np.ndarray) -> bool:
    """Whether a row's last tokens, all to be learnt, are one and the same."""
    tail = tokens[-_SAME_TAIL:]
    return len(tail) == _SAME_TAIL and bool((tail == tail[-1]).all() and learned[-_SAME_TAIL:].all())


def _leaks(leaks: Sequence[tuple[str, int, int]], threshold: float) -> list[str]:
    return [
        f"{found} of {rows} {split} rows are nearly in the training rows too (they share {threshold:.0%} of their "
        f"tokens or more): the {split} loss is too optimistic; split by source, or remove them"
        for split, rows, found in leaks
        if found > _TOLERATED_LEAKS * rows
    ]


class Names(Protocol):
    """What is used of a transformers tokenizer."""

    def convert_ids_to_tokens(self, ids: int) -> str | list[str]:
        """A token's own spelling."""


def check_embeddings(data: PreparedData, embeddings: int, tokenizer: Names) -> None:
    """Raise `DataError` where rows hold tokens that were added to the tokenizer and not to the model."""
    tables = (data.train, data.validation, data.test)
    largest = max(int(table.tokens.max(initial=0)) for table in tables)
    if largest >= embeddings:
        raise DataError(
            f"the rows hold token {largest} ({tokenizer.convert_ids_to_tokens(largest)!r}), but the model has "
            f"embeddings for 0 to {embeddings - 1} only; resize them (model.resize_token_embeddings("
            "len(tokenizer))) and save the model, or take the token out of the rows."
        )
