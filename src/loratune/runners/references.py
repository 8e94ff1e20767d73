"""The base model's likelihoods of a study's pairs, with which preferences are compared: computed once for all trials.

Neither beta nor any other hyper-parameter changes them, so they are kept in a file for later commands and other
processes on the same rows and weights. Knows tables and one folder; not what is learnt from them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import numpy as np
import numpy.typing as npt

from loratune.data.table import TokenTable
from loratune.engine.pack import PackEngine
from loratune.files.write import replacing

Floats = npt.NDArray[np.float64]


class References:
    """Reference likelihoods of one base model; a table's are looked for in the folder first."""

    def __init__(self, folder: Path, weights: Callable[[], str]) -> None:
        """`weights`: digest of the base model's weights, asked for when it is first needed."""
        self._folder = folder
        self._weights = weights
        self._known: dict[int, tuple[TokenTable, TokenTable]] = {}

    @cached_property
    def _digest(self) -> str:
        return self._weights()

    def of(self, engine: PackEngine, table: TokenTable) -> TokenTable:
        """The table with its references. Raises `ResourceError` where memory does not hold one row."""
        if id(table) not in self._known:
            path = self._folder / f"{self._key(engine, table)}.npy"
            values = _read(path, len(table))
            if values is None:
                values = engine.reference_likelihoods(table)
                with suppress(OSError):  # computed again next time
                    self._folder.mkdir(parents=True, exist_ok=True)
                    with replacing(path) as file:
                        np.save(file, values)
            self._known[id(table)] = (
                table,
                table.referenced(values),
            )  # the table is kept, or its id would be free
        return self._known[id(table)][1]

    def unknown(self, table: TokenTable) -> TokenTable:
        """The table with zeros, for measuring how long steps take."""
        return table.referenced(np.zeros(len(table)))

    def _key(self, engine: PackEngine, table: TokenTable) -> str:
        """Digest of everything that the numbers depend on, up to rounding."""
        base = engine.base
        whole = blake2b(f"{self._digest} {base.dtype} {base.weight_format}".encode(), digest_size=16)
        for piece in _pieces(table):
            whole.update(piece)
        return whole.hexdigest()


def _pieces(table: TokenTable) -> Iterator[bytes]:
    yield table.lengths.tobytes()
    for i in range(len(table)):
        for part in table.row(i):
            yield np.ascontiguousarray(part).tobytes()


def _read(path: Path, rows: int) -> Floats | None:
    """What is kept there; None where there is nothing or it is damaged."""
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    whole = values.shape == (rows,) and values.dtype == np.float64 and bool(np.isfinite(values).all())
    return values if whole else None


def folder_of(cache: Path) -> Path:
    """Where they are kept: $LORATUNE_REFERENCES, else beside the unpacked weights."""
    chosen = os.environ.get("LORATUNE_REFERENCES")
    return Path(chosen) if chosen else cache / "references"
