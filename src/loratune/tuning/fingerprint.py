"""What must be the same when a study goes on: option values, rows, base model, number format.

Knows files and options; compares nothing (the study does).
"""

from __future__ import annotations

import os
from dataclasses import MISSING, asdict, fields
from hashlib import blake2b
from pathlib import Path
from typing import Any

from loratune.model.digest import tokenizer_digest, weights_digest
from loratune.model.source import locate
from loratune.tuning.context import search_context
from loratune.tuning.options import TuneOptions
from loratune.tuning.workbench import Workbench

_FREE = (
    "out",
    "storage",
    "resume",
    "budget",
    "pack_size",
    "recalibrate",
    "device",
    "device_memory",
    "no_ledger",
    "from_study",
)
"""Options that may change between a run and its resumption: they change no trial beyond rounding
(what earlier studies say is kept in the study)."""
_SAMPLE = 64 * 1024
"""Bytes read at each end of a weight file: names and shapes stand at the start, numbers at the end."""


def option_values(options: TuneOptions) -> dict[str, Any]:
    """The options that a study's trials and decisions depend on, as JSON values."""
    return {name: value for name, value in asdict(options).items() if name not in _FREE}


def default_values() -> dict[str, Any]:
    """What an option stands for that a study does not have, as it is older than the option."""
    return {
        each.name: each.default
        for each in fields(TuneOptions)
        if each.default is not MISSING and each.name not in _FREE
    }


def fingerprint(options: TuneOptions, bench: Workbench) -> dict[str, Any]:
    """`option_values`, and what became of them: digests of rows and model, number format, largest batch."""
    return {
        **option_values(options),
        "data_digest": bench.data.fingerprint,
        "model_digest": model_digest(options.model),
        "tokenizer_digest": tokenizer_digest(locate(options.model)),
        "weights_digest": weights_digest(locate(options.model), every_byte=options.hash_weights),
        "base_dtype": str(next(bench.base.model.parameters()).dtype).removeprefix("torch."),
        "largest_batch": search_context(bench, options).largest_batch,
    }


def model_digest(model: str) -> str:
    """16 hex digits over the configuration and the names, sizes and both ends of the weight files.

    Studies of format 1 have no other digest of the model.

    Raises `ModelError` where there is no such model.
    """
    source = locate(model)
    whole = blake2b(digest_size=8)
    if source.gguf is None:
        whole.update((source.folder / "config.json").read_bytes())
        weights = sorted(source.folder.glob("*.safetensors"))
    else:
        weights = [source.folder / source.gguf]
    for path in weights:
        whole.update(f"{path.name} {path.stat().st_size} ".encode())
        whole.update(_ends(path))
    return whole.hexdigest()


def _ends(path: Path) -> bytes:
    with path.open("rb") as file:
        start = file.read(_SAMPLE)
        file.seek(max(0, path.stat().st_size - _SAMPLE), os.SEEK_SET)
        return start + file.read(_SAMPLE)
