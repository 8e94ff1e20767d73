"""Sizes that repeat, so that code compiled or recorded for one size serves again."""

CAPACITY = 256
"""Trials in a pack, at most."""


LAUNCH_TOKENS = {"cpu": 64, "cuda": 1024}
"""Cost of one more micro-batch, in tokens."""


def few_sizes(count: int, *, multiple: int = 4, parts: int = 16) -> int:
    """The next of few sizes from `count` on: at most 1 / `parts` larger, or a multiple of `multiple`."""
    step = max(multiple, (1 << max(count - 1, 1).bit_length()) // (2 * parts))
    return -(-count // step) * step


RECORDED_TOKENS = 65536
"""Lines of at most so many tokens are recorded as CUDA graphs, which should meet few sizes; a graph keeps the memory
of its activations for good."""
_COARSE_TOKENS = 16384
"""Below, where a step has few rows and their sum varies, recorded lines meet fewer sizes."""
_RECORDED_FLOPS = 80e12
"""Of a micro-batch's products: above, launching should cost less than the work. An estimate: on H200s a pass of an 8B
model took the host .15 to .19 s, in which the device does about so many."""


def recorded_tokens(parameters: int) -> int:
    """Tokens of the largest micro-batch that is recorded, of a model with so many parameters."""
    return int(min(RECORDED_TOKENS, _RECORDED_FLOPS / (4 * max(1, parameters))))


def line_tokens(count: int, *, multiple: int, recorded: int) -> int:
    """Tokens of the flat line that holds `count`, where lines of at most `recorded` tokens are recorded.

    Those are filled up by at most an eighth, from 16,384 tokens on a sixteenth; others by 3 %.
    """
    parts = 32 if count > recorded else 8 if count <= _COARSE_TOKENS else 16
    return few_sizes(count, multiple=multiple, parts=parts)
