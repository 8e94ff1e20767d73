"""Running out of memory: how it is recognised, what is parked, what changes after it, and how it is reported.

Tensors that are parked go from a GPU to the machine's memory, on a CPU to a temporary file. Knows devices and
errors; nothing of packs.
"""

import gc
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from itertools import zip_longest
from tempfile import TemporaryFile
from typing import Self, TypeVar

import numpy as np
import torch

from loratune.errors import LoratuneError, ResourceError
from loratune.model.device import held_memory
from loratune.values import Trial

T = TypeVar("T")

_TEXTS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory: you tried to allocate",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""Words in plain RuntimeErrors: CUDA and Triton beside torch's allocator; the CPU's, on Linux and Windows; cuBLAS."""
_ASKED = re.compile(r"tried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)", re.IGNORECASE)
_UNITS = {"bytes": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30}


class DoesNotFit(MemoryError):
    """Memory ran out and nothing can be made smaller; the work has not begun."""


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
    """Bytes that the process held then, with those that it asked for where the error says so."""

    @classmethod
    def of(cls, error: BaseException, device: torch.device) -> Self:
        """What an error says; to be read before memory is given back."""
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


class Place(StrEnum):
    """Where memory ran out."""

    TRAINING = "training"
    """The micro-batches have been halved."""
    ACTIVATIONS = "activations"
    """They are computed again, of all layers: a single row was too large."""
    EVALUATION = "evaluation"
    """The micro-batches of evaluation have been halved."""
    PACK = "pack"
    """Fewer trials train side by side; the others wait."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shortage:
    """Nothing was lost, no step was taken twice; what follows is smaller."""

    place: Place
    trials: tuple[Trial, ...]
    """The trials in memory when it ran out."""
    tokens: int
    """Most tokens of the micro-batch that failed, padding included."""
    needed: int
    """Bytes that were held, with those that were asked for where the error said so."""
    now: int
    """Tokens of a micro-batch, or trials side by side, at most, from now on."""
    recomputed: int = 0
    """Layers that kept no activations in the micro-batch that failed."""

    @property
    def sentence(self) -> str:
        """The message for people."""
        trials = f"{len(self.trials)} trial{'s' if len(self.trials) != 1 else ''}"
        held = f"{self.needed / 2**30:.1f} GiB were needed"
        if self.place is Place.PACK:
            return (
                f"Memory ran out with {trials} in it ({held}): from now on at most {self.now} train beside each "
                "other, the others take turns; nothing was lost."
            )
        if self.place is Place.ACTIVATIONS:
            return (
                f"Memory ran out in training with {trials} and one row of {self.tokens:,} tokens ({held}): from now on "
                "the activations of all layers are recomputed in the backward pass; nothing was lost."
            )
        return (
            f"Memory ran out in {self.place} with {trials} and micro-batches of {self.tokens:,} tokens ({held}): "
            f"they have {self.now:,} at most from now on; nothing was lost."
        )


def ignore(shortage: Shortage) -> None:
    """Nobody wants to know."""


def free(tensors: Sequence[torch.Tensor]) -> None:
    """Give the memory of tensors and of all their views back; their numbers are lost."""
    _resize(tensors, [0] * len(tensors))


def _resize(tensors: Sequence[torch.Tensor], sizes: Sequence[int]) -> None:
    """Change the tensors' memory to these bytes; what numpy has looked at keeps its memory."""
    for tensor, size in zip(tensors, sizes, strict=True):
        storage = tensor.untyped_storage()
        if storage.resizable():
            storage.resize_(size)


class Parked:
    """Tensors whose memory is given back; until `restore` they and their views must not be read.

    The numbers of `zeros` are not kept: they come back as zeros.
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
