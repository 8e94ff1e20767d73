"""Whatever ended a command, as one sentence and an exit code."""

from __future__ import annotations

from pathlib import Path

from loratune.errors import InputError, LoratuneError, ResourceError
from loratune.files.paths import disk_is_full, fullest_disk

_PANIC = "PanicException"
"""How an assertion in a library written in Rust (tokenizers, safetensors) arrives; no subclass of `Exception`."""


def explain(error: BaseException) -> tuple[str, int]:
    """(sentence, exit code) of an error that reached the command line."""
    if isinstance(error, LoratuneError):
        return str(error), error.exit_code
    if disk_is_full(error):
        place = fullest_disk(Path.cwd())
        return (
            f"The disk {place} is full; free some space there and run the command again.",
            ResourceError.exit_code,
        )
    if isinstance(error, MemoryError):
        return "Memory is used up; use smaller data or a larger machine.", ResourceError.exit_code
    if isinstance(error, OSError) and error.filename is not None:
        reason = f"{error.strerror or type(error).__name__}: {error.filename!r}"
        return (
            f"A file or folder must be usable, but: {reason}; check the path and its permissions.",
            InputError.exit_code,
        )
    if type(error).__name__ == _PANIC:
        return (
            f"A file of the model or the data broke a rule of the library that reads it ({error}); "
            "check the tokenizer's files, or download the model again.",
            InputError.exit_code,
        )
    return (
        f"Unexpected {type(error).__name__}: {error}; set LORATUNE_DEBUG=1 to see where, and report it.",
        1,
    )
