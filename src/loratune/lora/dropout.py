"""Dropout masks without state: an integer hash of who, when and where.

An element's mask depends on (trial seed, step, module, row in the trial's batch, token, feature) only:
not on the neighbours in the pack, the cut into micro-batches, the padding or the device.
"""

from collections.abc import Sequence
from functools import lru_cache
from zlib import crc32

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


def row_keys(seed: int, step: int, rows: Sequence[int], device: torch.device) -> torch.Tensor:
    """[rows] int32 keys of rows of one trial's batch at one step; `rows` are numbers within that batch."""
    salt = crc32(f"{seed}/{step}".encode())
    return _mix(torch.tensor([_signed(salt + row * 0x9E3779B9) for row in rows], dtype=torch.int32)).to(
        device
    )


def keep_mask(keys: torch.Tensor, module: str, *, tokens: int, features: int, p: float) -> torch.Tensor:
    """[rows · tokens, features] True where an input is kept, with probability 1 - p."""
    device = keys.device
    row = _mix(keys ^ _signed(crc32(module.encode())))
    token = torch.arange(tokens, dtype=torch.int32, device=device) * _GOLDEN
    place = _mix(row[:, None] + token).reshape(-1, 1)
    threshold = round(p * 2**32) - 2**31
    return _mix(place ^ _feature_hashes(features, device)) >= threshold
