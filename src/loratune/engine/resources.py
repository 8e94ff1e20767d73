"""Running out of memory: how it is recognised, what it tells, how its memory comes back, how it is said.

Knows devices and errors; nothing of packs.
"""

import gc
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self, TypeVar

import torch

from loratune.errors import LoratuneError, ResourceError
from loratune.model.device import held_memory

T = TypeVar("T")

_TEXTS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory: you tried to allocate",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""Of plain RuntimeErrors: CUDA and Triton beside torch's allocator; the CPU's, on Linux and Windows; cuBLAS."""
_ASKED = re.compile(r"tried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)", re.IGNORECASE)
_UNITS = {"bytes": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30}


class DoesNotFit(MemoryError):
    """Memory ran out where nothing is left to be cut; what was asked for has not begun."""


def is_memory_error(error: BaseException | None) -> bool:
    """Whether an allocation failed, or it is why a RuntimeError came (at the end of a CUDA graph's recording)."""
    while isinstance(error, RuntimeError | MemoryError) and not isinstance(error, LoratuneError):
        named = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if named or any(text in str(error) for text in _TEXTS):
            return True
        error = error.__cause__ or error.__context__
    return False


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """An allocation that failed."""

    message: str
    needed: int
    """Bytes that the process held then, with those that it asked for where the error tells."""

    @classmethod
    def of(cls, error: BaseException, device: torch.device) -> Self:
        """What an error tells; to be asked before memory is given back."""
        asked = _ASKED.search(str(error))
        wanted = float(asked[1]) * _UNITS[asked[2].lower()] if asked else 0.0
        return cls(message=str(error).split("\n")[0], needed=held_memory(device) + int(wanted))


def attempt(work: Callable[[], T], device: torch.device) -> T | Failure:
    """What `work` returns; a `Failure` where memory ran out, all that it had made given back."""
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not is_memory_error(error):
            raise
        failure = Failure.of(error, device)
    # only here, behind the error with its frames, is what they held free
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return failure


@contextmanager
def memory_errors(advice: str) -> Iterator[None]:
    """Turn out-of-memory errors into a `ResourceError` that ends with `advice`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_memory_error(error):
            raise
        raise ResourceError(f"the device's memory does not hold the pack; {advice}.") from error
