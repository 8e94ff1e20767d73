"""Sizes that repeat, so that code compiled or recorded for one size serves again."""


def few_sizes(count: int, *, multiple: int = 4, parts: int = 16) -> int:
    """The next of few sizes from `count` on: at most 1 / `parts` larger, or a multiple of `multiple`."""
    step = max(multiple, (1 << max(count - 1, 1).bit_length()) // (2 * parts))
    return -(-count // step) * step


RECORDED_TOKENS = 16384
"""Lines of at most so many tokens are recorded as CUDA graphs, which should meet few sizes; a graph keeps the memory
of its activations for good."""


def line_tokens(count: int, *, multiple: int, recorded: bool) -> int:
    """Tokens of the flat line that holds `count`: filled up by at most an eighth where it is recorded, else 3 %."""
    return few_sizes(count, multiple=multiple, parts=8 if recorded and count <= RECORDED_TOKENS else 32)
