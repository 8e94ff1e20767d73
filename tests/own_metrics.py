"""Metrics as a user writes them, for the tests: a good one of each direction, and all that can go wrong."""

from collections.abc import Sequence

from loratune.metrics import metric


def overlap(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """Share of the reference's characters that stand at the same place; larger is better."""
    return [
        sum(a == b for a, b in zip(p, r, strict=False)) / max(len(p), len(r), 1)
        for p, r in zip(predictions, references, strict=True)
    ]


@metric(larger_is_better=False, unit="characters", margin=0.1)
def wrong_characters(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """Characters that differ, counted to the longer text's end; smaller is better."""
    return [
        float(max(len(p), len(r)) - sum(a == b for a, b in zip(p, r, strict=False)))
        for p, r in zip(predictions, references, strict=True)
    ]


@metric(larger_is_better=False)
def error_rate(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """1 - overlap, in points; smaller is better."""
    return [1 - each for each in overlap(predictions, references)]


@metric(unit="characters", margin=0.1)
def upside_down(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """Says by mistake that more wrong characters are better."""
    return list(wrong_characters(predictions, references))


def leaves(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    raise SystemExit(7)


def raises(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    raise KeyError("no such\nrow")


def one_number(predictions: Sequence[str], references: Sequence[str]) -> float:
    return 0.5


def too_few(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    return [0.5] * (len(predictions) - 1)


def not_numbers(predictions: Sequence[str], references: Sequence[str]) -> list[str]:
    return ["good"] * len(predictions)


def nan_for_one(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    return [0.5] * (len(predictions) - 1) + [float("nan")]


def per_cent(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    return [73.0] * len(predictions)


number = 3
