"""Tensors put aside while others use their device's memory; they come back as the same tensors.

From a GPU they go to the machine's memory, on a CPU to a temporary file. Knows nothing of trials.
"""

from collections.abc import Sequence
from itertools import zip_longest
from tempfile import TemporaryFile

import numpy as np
import torch


def free(tensors: Sequence[torch.Tensor]) -> None:
    """Give the memory of tensors and of all their views back; their numbers are lost."""
    _resize(tensors, [0] * len(tensors))


def _resize(tensors: Sequence[torch.Tensor], sizes: Sequence[int]) -> None:
    """To so many bytes; what numpy has looked at keeps its memory."""
    for tensor, size in zip(tensors, sizes, strict=True):
        storage = tensor.untyped_storage()
        if storage.resizable():
            storage.resize_(size)


class Parked:
    """Tensors whose memory is given back; until `restore` nobody may read them or their views.

    Of `zeros` no numbers are kept: they come back as zeros.
    """

    def __init__(self, tensors: Sequence[torch.Tensor], *, zeros: Sequence[torch.Tensor] = ()) -> None:
        self._tensors = [*tensors, *zeros]
        self._sizes = [tensor.untyped_storage().nbytes() for tensor in self._tensors]
        self._kept = [_elsewhere(tensor) for tensor in tensors]
        free(self._tensors)

    def restore(self) -> None:
        """Have the numbers back in place. Where memory does not suffice the error is raised and all stays parked."""
        try:
            _resize(self._tensors, self._sizes)
        except (RuntimeError, MemoryError):
            free(self._tensors)
            raise
        for tensor, kept in zip_longest(self._tensors, self._kept):
            if kept is None:
                tensor.zero_()
            else:
                tensor.copy_(kept)


def _elsewhere(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that takes none of the device's memory."""
    if tensor.device.type != "cpu":
        return tensor.cpu()
    dtype = torch.empty(0, dtype=tensor.dtype).numpy().dtype
    with TemporaryFile() as file:
        pages = np.memmap(file, dtype, "w+", shape=tuple(tensor.shape))
    return torch.from_numpy(pages).copy_(tensor)
