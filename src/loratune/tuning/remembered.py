"""What earlier commands have measured on this machine: calibrations for a device, a model's shape and a kind of rows,
and the noise scale of just these rows under just these weights.

Small JSON files, one a measurement, in the user's cache ($LORATUNE_CALIBRATIONS moves them). A calibration that cannot
be read, is older than a month or no longer fits into memory is measured again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from math import log2
from pathlib import Path
from time import time
from typing import Any

import numpy as np
import torch

from loratune.costs.calibration import Calibration
from loratune.costs.threads import is_shared
from loratune.data.table import TokenTable
from loratune.files.read_json import parse_json
from loratune.files.write import write_atomically
from loratune.runners.spec import EngineFacts
from loratune.tuning.options import SearchOptions
from loratune.values import PLAIN, NoiseScale
from loratune.values.plain import from_plain, to_plain

_OLDEST = 30 * 86400.0
"""Seconds: drivers and neighbours change."""


def remembered(
    folder: Path, facts: EngineFacts, train: TokenTable, options: SearchOptions
) -> Calibration | None:
    """What was measured for such a model and such rows here; None where nothing was that still holds."""
    path = _path(folder, facts, train, options)
    try:
        if time() - path.stat().st_mtime > _OLDEST:
            return None
        found = Calibration.from_dict(parse_json(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    limits = facts.limits
    seen = replace(
        limits,
        micro_batch_tokens=max(found.micro_batch_tokens, limits.max_length),
        correction=found.correction,
    )
    recipe = options.hyper_parameters(**options.variant)
    recipe = replace(recipe, r=min(recipe.r, facts.profile.largest_rank))
    return found if found.slots >= 1 and seen.fits([recipe] * found.slots) else None


def remember(
    folder: Path, facts: EngineFacts, train: TokenTable, options: SearchOptions, calibration: Calibration
) -> None:
    """Keep it for the next command; a cache that cannot be written is none.

    What was measured with fewer threads says more of the neighbours than of the device, and they may be gone by then.
    """
    if calibration.threads:
        return
    path = _path(folder, facts, train, options)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(to_plain(calibration)) + "\n")
    except OSError:
        return


class NoiseMemory:
    """Noise scales by all that they depend on: no clock is in them, so a measured one is as good as another."""

    def __init__(
        self,
        folder: Path,
        facts: EngineFacts,
        train: TokenTable,
        options: SearchOptions,
        asked: Sequence[Any],
    ) -> None:
        """`asked`: digests of rows and weights, and how it is measured."""
        about = {**_conditions(facts, train, options), "noise": list(asked)}
        self._path = folder / "noise" / _name(about)

    def kept(self) -> NoiseScale | None:
        """None where none was measured, or it cannot be read."""
        try:
            return from_plain(NoiseScale, parse_json(self._path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return None

    def keep(self, noise: NoiseScale) -> None:
        """Keep it for the next command; a cache that cannot be written is none."""
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps(to_plain(noise)) + "\n")


def _path(folder: Path, facts: EngineFacts, train: TokenTable, options: SearchOptions) -> Path:
    """A name for all that the measurement depends on; lengths count in steps of a quarter doubling."""
    return folder / _name(_conditions(facts, train, options))


def _name(about: dict[str, Any]) -> str:
    text = json.dumps(about, sort_keys=True)
    return f"{blake2b(text.encode(), digest_size=12).hexdigest()}.json"


def _conditions(facts: EngineFacts, train: TokenTable, options: SearchOptions) -> dict[str, Any]:
    profile = facts.profile
    return {
        "way": 0 if facts.on_cpu else 2,  # of measuring: on GPUs the first ones timed recordings
        "device": facts.device_name,
        "threads": [torch.get_num_threads(), is_shared()] if facts.on_cpu else [0, False],
        "versions": [_version(name) for name in ("loratune", "torch", "transformers", "triton")],
        "model": [
            profile.family,
            profile.parameters,
            profile.layers,
            profile.hidden_size,
            profile.vocabulary,
        ],
        "targets": [options.target_modules, profile.parameters_per_rank],
        "dtype": f"torch.{facts.dtype}",
        **({} if profile.weight_format == PLAIN else {"weights": profile.weight_format}),
        **({} if facts.limits.recompute == 0 else {"recompute": facts.limits.recompute}),
        **({} if profile.shards == 1 else {"shards": profile.shards}),
        "paths": str(facts.paths),
        "objective": options.learns,
        **({"variants": options.variants} if options.variants else {}),
        "pack_size": options.pack_size,
        "memory": options.device_memory,  # what is free changes by the minute: whether it fits is checked instead
        "rows": [_step(float(train.lengths.mean())), _step(facts.limits.max_length), min(len(train), 1024)],
        "supervised": _step(float(np.mean(train.supervised_counts) / np.mean(train.lengths))),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _step(value: float) -> int:
    return round(4 * log2(max(value, 1e-9)))
