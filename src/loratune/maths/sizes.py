"""Sizes that repeat, so that code compiled or recorded for one size serves again."""

from collections.abc import Callable
from math import ceil

CAPACITY = 256
"""Trials in a pack, at most."""


LAUNCH_TOKENS = {"cpu": 64, "cuda": 1024}
"""Cost of one more micro-batch, in tokens."""

SHARD_BUFFERS = 4
"""Layers of other processes that are here at once, where a base model is sharded: one at work, two ahead, one on its
way out."""


def few_sizes(count: int, *, multiple: int = 4, parts: int = 16) -> int:
    """The next of few sizes from `count` on: at most 1 / `parts` larger, or a multiple of `multiple`."""
    step = max(multiple, (1 << max(count - 1, 1).bit_length()) // (2 * parts))
    return -(-count // step) * step


RECORDED_TOKENS = 65536
"""Tokens of the longest line that is recorded as a CUDA graph, which should meet few sizes; a graph keeps the memory
of its activations for good."""
_COARSE_TOKENS = 16384
"""Tokens below which recorded lines meet fewer sizes: a step has few rows there and their sum varies."""
_RECORDED_FLOPS = 80e12
"""FLOPs of a micro-batch's products above which launching should cost less than the work. An estimate: on H200s a pass
of an 8B model took the host .15 to .19 s, in which the device does about this number."""


def recorded_tokens(parameters: int) -> int:
    """Tokens of the largest micro-batch that is recorded, of a model with this number of parameters."""
    return int(min(RECORDED_TOKENS, _RECORDED_FLOPS / (4 * max(1, parameters))))


_FILLERS = {True: 1 / 8, False: 1 / 16}
"""Share of a recorded line that is filler at most, by whether it is small."""


def filler(count: int) -> float:
    """Share by which a recorded line of `count` tokens is filled up at most."""
    return _FILLERS[count <= _COARSE_TOKENS]


def line_tokens(count: int, *, multiple: int, recorded: int) -> int:
    """Tokens of the flat line that holds `count`, where lines of at most `recorded` tokens are recorded.

    Those are filled up by at most an eighth, from 16,384 tokens on a sixteenth; others by 3 %.
    """
    parts = 32 if count > recorded else 8 if count <= _COARSE_TOKENS else 16
    return few_sizes(count, multiple=multiple, parts=parts)


class MetSizes:
    """Sizes that were met serve again where they are hardly larger, so that few are met at all.

    Steps of equal size meet theirs alone; where one is slightly larger than those before, its size has room for others.
    What is taken depends on what came before, in the same order the same every time.
    """

    def __init__(self, rounded: Callable[[int], int], filler: Callable[[int], float], *, most: int) -> None:
        """`rounded`: a new size from a count on; `filler`: the share by which a count is filled up to a met one;
        `most`: the largest size that is worth while.
        """
        self._rounded, self._filler, self._most = rounded, filler, most
        self._met: list[int] = []

    def of(self, count: int) -> int:
        """The smallest met size that is not too large; else a new one."""
        share = 1 + self._filler(count)
        fitting = [size for size in self._met if count <= size <= share * count]
        if fitting:
            return min(fitting)
        outgrown = [size for size in self._met if size < count <= share * size]
        roomy = ceil((1 + share) / 2 * count)
        self._met = [size for size in self._met if size not in outgrown]
        self._met.append(self._rounded(roomy if outgrown and roomy <= self._most else count))
        return self._met[-1]
