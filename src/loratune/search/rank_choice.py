"""Which rank is taken of those measured: the smallest that is likely enough, else the one with the lowest loss."""

from math import inf

from loratune.metrics import default_margin, find
from loratune.search.field import Field
from loratune.search.waves import is_wide
from loratune.values import SearchContext

LIKELY = 0.8
"""Probability of losing at most the margin from which on a smaller rank is taken."""
LIKELY_WIDE, LITTLE = 2 / 3, 2 / 3
"""The same where width is nearly free, and the share of what may be lost that is expected of that rank, at most."""


def likely_enough(context: SearchContext) -> float:
    """Probability of losing at most the margin from which on a smaller rank is taken on this device."""
    return LIKELY_WIDE if is_wide(context) else LIKELY


def _tolerated(context: SearchContext) -> float:
    """What may be lost, in the metric's unit: the user's margin; where none was given the metric's own, without what
    widens it to the luck of a seed. That says what can be told apart."""
    wishes = context.wishes
    if wishes.margin == default_margin(wishes.metric, context.data.labels):
        return find(wishes.metric).info.margin
    return wishes.margin


def adequate(field: Field, r: int) -> float:
    """Probability that a rank at its best loses at most the margin against the largest and against the best one."""
    return min(field.within(r, other) for other in (field.lowest, max(field.best)))


def choice(field: Field) -> int:
    """The smallest rank that is likely to be within the margin of the best and of the largest one; where none is,
    that with the lowest expected loss. One that stands out above its neighbours is not taken.

    Where width is nearly free the best was measured and not only expected: the loss has to be small as well.
    """
    context = field.context
    allowed = sorted(r for r in field.best if r not in field.outliers) or sorted(field.best)
    most = field.level(field.lowest) + LITTLE * _tolerated(context) if is_wide(context) else inf
    enough = likely_enough(context)
    likely = (r for r in allowed if adequate(field, r) >= enough and field.level(r) <= most)
    return next(likely, min(allowed, key=field.level))
