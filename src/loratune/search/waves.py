"""How many trials to ask for at once: whether a trial beside others costs less than waiting for the answers before it.

One rule from the pace of the device, whatever the device: where a trial in a full pack costs at most `NEARLY_FREE` of
one alone, a request holds everything that may turn out to be useful; elsewhere only what is needed next.
"""

from collections.abc import Iterable, Sequence

from loratune.search.procedure import ROUNDING
from loratune.search.space import prior_setting
from loratune.values import SearchContext, Trial

NEARLY_FREE = 0.4
"""Share of a run alone that a speculative trial may cost."""
MOST = 64
"""No device was measured to gain from more trials in flight."""


def wave_cost(context: SearchContext, count: int) -> float:
    """Cost of `count` trials of the prior's setting, on all rows, side by side."""
    trials = [Trial(hyper_parameters=prior_setting(context))] * count
    return context.wave_cost(trials)


def width_price(context: SearchContext) -> float:
    """What one trial costs in the pack that makes it cheapest, in runs alone."""
    if context.costs.pace is None:
        return 1.0
    sizes = {min(1 << power, context.costs.pace.slots, MOST) for power in range(7)}
    return min(wave_cost(context, size) / size for size in sizes)


def is_wide(context: SearchContext) -> bool:
    """Whether more trials in a pack cost nearly nothing here."""
    return width_price(context) <= NEARLY_FREE


def affordable(context: SearchContext, wanted: Sequence[Trial], room: float) -> int:
    """How many of these, counted from the first, cost at most `room` together."""
    if context.wave_cost(wanted) <= room + ROUNDING:
        return len(wanted)
    low, high = 0, len(wanted)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if context.wave_cost(wanted[:middle]) <= room + ROUNDING else (low, middle)
    return low


def wave(
    context: SearchContext, needs: Iterable[Sequence[Trial]], *, wide: bool, room: float
) -> tuple[Trial, ...]:
    """The next request from needs in order of urgency: the first one that there is, or where width is nearly free as
    many as `room` pays for."""
    wanted: dict[str, Trial] = {}
    for need in needs:
        for each in need:
            wanted.setdefault(each.key, each)
        if wanted and not wide:
            break
    trials = tuple(wanted.values())
    return trials[: affordable(context, trials, room)]
