"""Where a row's last answer stands: what a model is to write by itself, and what it is given before."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loratune.data.table import TokenTable

Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """A row up to the end of its last answer."""

    prompt: Tokens
    """All before the answer, earlier turns of a conversation included."""
    answer: Tokens
    """Its end-of-turn token included."""


def last_turn(tokens: Tokens, supervised: npt.NDArray[np.bool_]) -> Turn:
    """The last turn of a row with at least one supervised token; what follows its last answer is left out."""
    stop = len(tokens) - int(np.argmax(supervised[::-1]))
    before = np.flatnonzero(~supervised[:stop])
    start = int(before[-1]) + 1 if len(before) else 0
    return Turn(tokens[:start], tokens[start:stop])


def last_turns(table: TokenTable) -> list[Turn]:
    """[rows] of a table."""
    return [last_turn(*table.row(i)) for i in range(len(table))]
