"""The format of a study, and what brings older studies to it: one numbered function for each step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from loratune.errors import OutputError

Fingerprint = dict[str, Any]


def _to_2(found: Fingerprint, wanted: Mapping[str, Any]) -> Fingerprint:
    """Version 2 has digests of the tokenizer and of all weights; an older study takes those of what is there now."""
    return found | {name: wanted[name] for name in ("tokenizer_digest", "weights_digest") if name in wanted}


_STEPS: tuple[Callable[[Fingerprint, Mapping[str, Any]], Fingerprint], ...] = (_to_2,)
"""From version 1 to 2, and so on; a step that has been released is never changed."""

FORMAT = 1 + len(_STEPS)
"""Of studies written by this version."""


def migrated(found: Fingerprint, version: Any, wanted: Mapping[str, Any]) -> Fingerprint:
    """The fingerprint of an older study as this version would have kept it.

    `wanted`: the fingerprint of now. Raises `OutputError` for a study of a newer version.
    """
    if not isinstance(version, int) or not 1 <= version <= FORMAT:
        raise OutputError(
            f"A study must be of format 1 to {FORMAT}, got {version!r}; go on with it in the loratune that wrote it."
        )
    for step in _STEPS[version - 1 :]:
        found = step(found, wanted)
    return found
