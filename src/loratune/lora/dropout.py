"""Dropout masks without state: an integer hash of trial, step and position.

An element's mask depends on (trial seed, step, module, row in the trial's batch, token, feature) only:
not on the neighbours in the pack, the cut into micro-batches, the padding or the device.
"""

from collections.abc import Sequence
from functools import lru_cache
from zlib import crc32

import numpy as np
import numpy.typing as npt
import torch

# The multipliers of the "lowbias32" integer hash (two rounds), as signed 32-bit numbers.
# https://github.com/skeeto/hash-prospector
_FIRST = 0x7FEB352D
_SECOND = 0x846CA68B - (1 << 32)
_GOLDEN = 0x9E3779B9 - (1 << 32)


def _mix(x: torch.Tensor) -> torch.Tensor:
    """Two rounds of lowbias32, in place on int32 (products wrap; shifts are made logical by a mask)."""
    x ^= (x >> 16) & 0xFFFF
    x *= _FIRST
    x ^= (x >> 15) & 0x1FFFF
    x *= _SECOND
    x ^= (x >> 16) & 0xFFFF
    return x


@lru_cache(maxsize=64)
def _feature_hashes(features: int, device: torch.device) -> torch.Tensor:
    return _mix(torch.arange(features, dtype=torch.int32, device=device) + _GOLDEN)


def _signed(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >= 1 << 31 else value


def module_salt(module: str) -> int:
    """What a module's name adds to the hash, as a signed 32-bit number."""
    return _signed(crc32(module.encode()))


def threshold(p: float) -> int:
    """An input is dropped where its hash, a signed 32-bit number, lies below this one."""
    return round(p * 2**32) - 2**31


def row_keys(seed: int, step: int, rows: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """[rows] keys of rows of one trial's batch at one step; `rows` are numbers within that batch."""
    salt = crc32(f"{seed}/{step}".encode())
    keys = (np.asarray(rows, np.int64) * (_GOLDEN & 0xFFFFFFFF) + salt).astype(np.uint32).view(np.int32)
    return np.asarray(_mix(torch.from_numpy(keys)).numpy(), np.int32)


def keep_mask(
    keys: torch.Tensor, places: torch.Tensor, module: str, *, features: int, p: float
) -> torch.Tensor:
    """[tokens, features] True where an input is kept, with probability 1 - p.

    `keys` [tokens] int32 is each token's `row_keys`, `places` [tokens] int32 its place in its row.
    """
    row = _mix(keys ^ module_salt(module))
    place = _mix(row + places * _GOLDEN)
    return _mix(place[:, None] ^ _feature_hashes(features, keys.device)) >= threshold(p)
