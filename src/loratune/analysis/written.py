"""What models write by themselves after the prompts of a few test rows, for a reader to judge. Scores nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from loratune.data.table import TokenTable
from loratune.data.turns import last_turn
from loratune.runners.runner import AdapterFile, Evaluated, Runner, ScoringJob, only

SHOWN_TOKENS = 96
"""Most tokens shown of a text."""
_FEWEST_TOKENS = 16


class Decoder(Protocol):
    """A tokenizer, as far as it is needed here."""

    def decode(self, tokens: list[int], *, skip_special_tokens: bool) -> Any:
        """The text of the tokens."""


def written_tokens(answers: Sequence[npt.NDArray[np.int32]], given: int | None) -> int:
    """New tokens of a row: enough for each of the true answers, at most `given` where the user says so."""
    longest = max((len(answer) for answer in answers), default=0)
    return min(max(longest, _FEWEST_TOKENS), SHOWN_TOKENS, given or SHOWN_TOKENS)


def write_rows(
    runner: Runner,
    adapter: AdapterFile,
    table: TokenTable,
    rows: Sequence[int],
    tokenizer: Decoder,
    *,
    given: int | None = None,
) -> list[tuple[str, str]]:
    """What the adapter and the bare base write greedily in place of the last answers of `rows`, by row.

    `rows` are examples of the test split `table`; of a pair the preferred answer is replaced. Nothing where a row has
    no prompt. Raises `ModelError` where the model cannot decode.
    """
    places = [row * table.group for row in rows]
    turns = [last_turn(*table.row(place)) for place in places]
    if not turns or not all(len(turn.prompt) for turn in turns):
        return []
    most = written_tokens([turn.answer for turn in turns], given)
    chosen = tuple(place + each for place in places for each in range(table.group))
    job = ScoringJob(adapters=(adapter, None), split="test", chosen=chosen, max_new_tokens=most)
    done = only(runner.run([job]))
    assert isinstance(done, Evaluated)
    ours, base = (
        [_text(tokenizer, tokens, most) for tokens in (each.generated or ())[:: table.group]]
        for each in done.evaluations
    )
    return list(zip(ours, base, strict=True))


def _text(tokenizer: Decoder, tokens: npt.NDArray[np.int32], most: int) -> str:
    """The text without special tokens; what was cut off ends in dots."""
    text = str(tokenizer.decode(tokens.tolist(), skip_special_tokens=True)).strip()
    return f"{text} …".lstrip() if len(tokens) >= most else text
