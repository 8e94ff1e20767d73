"""Running out of memory, in one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from loratune.errors import ResourceError


@contextmanager
def memory_errors(advice: str) -> Iterator[None]:
    """Turn torch's out-of-memory errors into a `ResourceError` that ends with `advice`."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ResourceError(f"the device's memory does not hold the pack; {advice}.") from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise ResourceError(f"this machine's memory does not hold the pack; {advice}.") from error
