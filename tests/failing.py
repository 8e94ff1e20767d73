"""Calls that run out of memory when a test wants them to."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch


def out_of_memory() -> torch.OutOfMemoryError:
    return torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total of 1 GiB"
    )


@contextmanager
def failing(owner: Any, name: str, *at: int, after: bool = False) -> Iterator[None]:
    """Calls of that number, from 0, raise before (or after) they do anything."""
    calls, original = count(), owner.__dict__[name]
    function = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        failed = next(calls) in at
        if failed and not after:
            raise out_of_memory()
        result = function(*args, **kwargs)
        if failed:
            raise out_of_memory()
        return result

    setattr(owner, name, staticmethod(call) if isinstance(original, staticmethod) else call)
    try:
        yield
        assert next(calls) > max(at), "the failure has happened"
    finally:
        setattr(owner, name, original)
