"""Sizes that repeat, so that code compiled or recorded for one size serves again."""


def few_sizes(count: int, *, multiple: int = 4, parts: int = 16) -> int:
    """The next of few sizes from `count` on: at most 1 / `parts` larger, or a multiple of `multiple`."""
    step = max(multiple, (1 << max(count - 1, 1).bit_length()) // (2 * parts))
    return -(-count // step) * step
