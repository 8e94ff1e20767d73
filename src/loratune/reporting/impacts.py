"""What mattered here, as rows of text: effect on loss, memory and speed of each hyper-parameter. Knows facts only."""

from dataclasses import dataclass

from loratune.reporting.facts import RunFacts
from loratune.reporting.wording import rate, size
from loratune.values.analysis import Impact, Sensitivity

HEADS = ("hyper-parameter", "tried", "effect on NLL", "share of variance", "memory", "time")
_FLAT = 0.01
"""Relative changes of time below this are none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImpactTable:
    """Rows under `HEADS`, and the sentences that say what they rest on."""

    rows: tuple[tuple[str, ...], ...]
    takeaway: str
    basis: str


def impact_table(facts: RunFacts) -> ImpactTable:
    """The table, without rows where fewer than two values of anything were tried on all rows."""
    found = facts.sensitivity
    if found is None or not found.impacts:
        reason = "No hyper-parameter was tried at two values on all rows, so what mattered is not known."
        return ImpactTable(rows=(), takeaway=reason, basis="")
    return ImpactTable(
        rows=tuple(_row(each) for each in found.impacts), takeaway=_takeaway(found), basis=_basis(found)
    )


def _row(each: Impact) -> tuple[str, ...]:
    as_text = rate if each.name == "learning_rate" else lambda value: f"{value:g}"
    tried = f"{as_text(each.tried[0])} … {as_text(each.tried[-1])} ({len(each.tried)})"
    return each.name, tried, _effect(each), _share(each), _memory(each), _time(each)


def _effect(each: Impact) -> str:
    if each.effect is None:
        return "–"
    text = f"{each.effect:.4f} nats"
    if each.effect_interval is not None:
        text += f" ({each.effect_interval[0]:.4f} to {each.effect_interval[1]:.4f})"
    return text if each.effect_rows == 1 else f"{text} on {each.effect_rows:.0%} of the rows"


def _share(each: Impact) -> str:
    if each.share is None or each.share_interval is None:
        return "–"
    low, high = each.share_interval
    return f"{each.share:.0%} ({low:.0%} to {high:.0%})"


def _memory(each: Impact) -> str:
    if each.memory_bytes == 0:
        return "none"
    return ("+" if each.memory_bytes > 0 else "−") + size(abs(each.memory_bytes))


def _time(each: Impact) -> str:
    return "none" if abs(each.time_factor - 1) < _FLAT else f"x {each.time_factor:.2f}"


def _takeaway(found: Sensitivity) -> str:
    """The largest measured effect."""
    measured = [each for each in found.impacts if each.effect is not None]
    if not measured:
        return "No two values of the same hyper-parameter can be compared with all else equal."
    shown = [each for each in measured if each.effect_interval is None or each.effect_interval[0] > 0]
    first, *others = sorted(measured, key=lambda each: (each not in shown, -(each.effect or 0.0)))
    text = (
        f"{first.name} mattered most: {_effect(first)} between its best and its worst value"
        if shown
        else f"Nothing is shown to have mattered beyond noise; most {first.name}: {_effect(first)}"
    )
    if others:
        text += f"; next {others[0].name} with {_effect(others[0])}"
    return text + "."


def _basis(found: Sensitivity) -> str:
    """What the columns are, and why one may be empty."""
    text = (
        f"From {found.trials} trials on all rows. Effect: worst against best value tried, each at the best learning "
        "rate tried with it, all else as recommended"
    )
    if any(each.effect_rows < 1 for each in found.impacts):
        text += "; of the learning rate from trials on part of the rows, which count for nothing else"
    if any(each.effect_interval is not None for each in found.impacts):
        text += (
            "; in brackets its 95 % interval over seeds and rows, wide enough for having picked the two values that "
            "differ most"
        )
    elif any(each.effect is not None for each in found.impacts):
        text += "; without an interval, as too few settings were repeated with other seeds"
    text += (
        ". Memory (one trial's predicted peak) and time (one trial alone): largest against smallest value, by the "
        "models. "
    )
    if found.interactions is None:
        return text + (
            f"Shares of the variance are not shown: they need {found.wanted_trials} trials on all rows (20 for each "
            "hyper-parameter that varies), and with fewer they are mostly error. The effects stand by themselves."
        )
    text += (
        f"Share of the variance: functional ANOVA over the values tried, alone; {found.interactions:.0%} is "
    )
    text += "interaction (the best value of one depends on another) or noise"
    if found.noise is not None:
        seeds = f"{found.noise:.0%}" if found.noise >= 0.005 else "under 1 %"
        text += f", of which seeds make {seeds}"
    return text + "; 95 % intervals by resampling trials."
