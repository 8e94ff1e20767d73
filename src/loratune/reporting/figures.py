"""The report's figures from its tuples. matplotlib, an optional extra, is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from math import sqrt
from typing import Any

import numpy as np

from loratune.reporting.facts import PackSpan, RunFacts
from loratune.reporting.later_stages import AlphaPoint, BatchCell, StageCost
from loratune.reporting.rank_curves import GapPoint, LearningCurve, Measured, RankCurve, RankPoint
from loratune.reporting.svg import ACCENT, GOOD, HUES, INK, PAPER, SOFT, WARM, Drawing, blank, wrapped
from loratune.reporting.wording import count, duration, rate
from loratune.values import Cut, Truncation

NLL_AXIS = "validation NLL, nats per token"
_CUTS = {
    Cut.UNIFORM: ("cut, one rank for all layers", WARM, "-", "o"),
    Cut.THRESHOLD: ("cut, one threshold for all layers", WARM, ":", "D"),
    Cut.HEALED: ("cut and trained on for a little", GOOD, "-", "s"),
}
_STRONG = 0.55
"""Shade of a cell from which its number is written in the paper's colour."""


def rank_figure(name: str, curve: RankCurve, facts: RunFacts, beside: RankCurve | None = None) -> Drawing:
    """Quality against rank with intervals; `beside` is a second curve, drawn thin for comparison."""
    drawing = blank(name, 300, quantity=f"validation {curve.metric.axis}")
    axes, scale = drawing.axes, curve.metric.scale
    if beside is not None:
        values = [scale * point.measured.value for point in beside.points]
        axes.plot(
            [p.rank for p in beside.points], values, color=SOFT, linewidth=1.5, label="own learning rate"
        )
    label = f"learning rate {rate(curve.points[0].learning_rate)}" if beside else "own learning rate"
    ranks = [point.rank for point in curve.points]
    _measured(drawing, ranks, [point.measured for point in curve.points], scale=scale, label=label)
    _recommended(drawing, [(p.rank, scale * p.measured.value) for p in curve.points
                           if p.rank == facts.decision.hyper_parameters.r])  # fmt: skip
    for point in curve.points:
        drawing.tip(point.rank, scale * point.measured.value, _tip(point, scale))
    limit = None
    if beside is None and curve.metric.by_nll and facts.info(facts.metric).by_nll:
        limit = curve.points[-1].measured.value + facts.margin
        axes.axhline(limit, color=SOFT, linestyle=":", label=f"rank {ranks[-1]} + margin")
    if curve.elbow is not None:
        axes.axvline(curve.elbow, color=SOFT, linestyle="--", linewidth=1, label="elbow (does not decide)")
    drawing.ticks(ranks, [str(rank) for rank in ranks], title="rank")
    axes.set_ylim(*_range(curve, beside, limit, scale))
    drawing.legend()
    return drawing


def batch_figure(cells: Sequence[BatchCell], facts: RunFacts) -> Drawing:
    """Heat map: stronger is better, the worst quarter alike (it would hide the rest) and faint on any paper."""
    rates = list(dict.fromkeys(rate(each) for each in sorted(cell.learning_rate for cell in cells)))
    sizes = sorted({cell.batch_size for cell in cells})
    measured = [cell.nll for cell in cells if cell.nll is not None]
    best, worst = min(measured, default=0.0), float(np.quantile(measured or [0.0], 0.75))
    ours = facts.decision.hyper_parameters
    drawing = blank("batch", 90 + 34 * len(rates), quantity="learning rate")
    axes = drawing.axes
    for cell in cells:
        x, y = sizes.index(cell.batch_size), rates.index(rate(cell.learning_rate))
        chosen = (cell.batch_size, rate(cell.learning_rate)) == (ours.batch_size, rate(ours.learning_rate))
        shade = 0.0 if cell.nll is None else _shade(cell.nll, best, worst)
        axes.bar(x, 0.9, width=0.94, bottom=y - 0.45, color=ACCENT, alpha=shade)
        if chosen:
            axes.bar(x, 0.9, width=0.94, bottom=y - 0.45, fill=False, edgecolor=WARM, linewidth=2.5)
        text = "diverged" if cell.nll is None else f"{cell.nll:.4f}" if len(sizes) < 6 else f"{cell.nll:.3f}"
        drawing.write(x, y, text, ha="center", va="center", color=PAPER if shade > _STRONG else INK)
        drawing.tip(x, y, f"learning rate {rate(cell.learning_rate)}, batch size {cell.batch_size}: {text}")
    axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
    axes.set_yticks(range(len(rates)), rates)
    axes.set_xlim(-0.5, len(sizes) - 0.5)
    axes.set_ylim(-0.5, len(rates) - 0.5)
    axes.set_xlabel("batch size (stronger is better; framed: recommended)")
    _bare(drawing)
    return drawing


def alpha_figure(points: Sequence[AlphaPoint], facts: RunFacts) -> Drawing:
    """NLL against alpha."""
    drawing = blank("alpha", 270, quantity=NLL_AXIS)
    alphas = [point.lora_alpha for point in points]
    _measured(drawing, alphas, [point.measured for point in points], label="measured")
    chosen = facts.decision.hyper_parameters.lora_alpha
    _recommended(drawing, [(p.lora_alpha, p.measured.value) for p in points if p.lora_alpha == chosen])
    for point in points:
        text = f"alpha {point.lora_alpha:g} ({point.multiple:g} r): {point.measured.value:.4f}"
        drawing.tip(point.lora_alpha, point.measured.value, text)
    drawing.ticks(
        alphas, [f"{point.lora_alpha:g}\n{point.multiple:.3g} r" for point in points], title="alpha"
    )
    drawing.legend()
    return drawing


def curves_figure(curves: Sequence[LearningCurve]) -> Drawing:
    """Validation NLL during training, and the training NLL of the final trials (dotted)."""
    drawing = blank("curves", 330 + 9 * len(curves), quantity=NLL_AXIS)
    hues = cycle(HUES)
    for curve in curves:
        x = [100 * point.fraction for point in curve.points]
        values = [point.validation_nll for point in curve.points]
        colour = WARM if curve.final and curve.label == "recommended" else SOFT if curve.final else next(hues)
        wide = 2.5 if curve.final else 1.6
        label = f"{curve.label}, final" if curve.final else curve.label
        drawing.axes.plot(x, values, "o-", color=colour, linewidth=wide, markersize=3.5, label=label)
        if curve.final:
            training = [point.train_nll for point in curve.points]
            drawing.axes.plot(x, training, ":", color=colour, linewidth=1.6, label=f"{curve.label}, training")
        drawing.tip(x[-1], values[-1], f"{label}: {values[-1]:.4f}")
    drawing.axes.set_xlabel("share of its own steps, %")
    drawing.axes.set_ylim(*_without_the_start(curves))
    drawing.legend()
    return drawing


def gap_figure(points: Sequence[GapPoint]) -> Drawing:
    """Training and validation NLL by rank, side by side."""
    drawing = blank("gap", 280, quantity="NLL, nats per token (number: validation minus training)")
    places = np.arange(len(points))
    axes = drawing.axes
    axes.bar(places - 0.2, [point.train for point in points], width=0.36, color=SOFT, label="training")
    axes.bar(places + 0.2, [p.validation for p in points], width=0.36, color=ACCENT, label="validation")
    top = max(max(point.train, point.validation) for point in points)
    for place, point in enumerate(points):
        text = f"{point.gap:+.3f}" if len(points) < 8 else f"{point.gap:+.2f}"
        drawing.write(place, max(point.train, point.validation) + 0.02 * top, text, ha="center", va="bottom")
        drawing.tip(place, point.validation, f"rank {point.rank}: {point.train:.4f} / {point.validation:.4f}")
    axes.set_xticks(places, [str(point.rank) for point in points])
    axes.set_ylim(0, 1.12 * top)
    axes.set_xlabel("rank")
    axes.grid(visible=False, axis="x")
    drawing.legend()
    return drawing


def cost_figure(costs: Sequence[StageCost]) -> Drawing:
    """Time by stage, planned and actual."""
    drawing = blank("cost", 80 + 46 * len(costs))
    places = np.arange(len(costs))[::-1]
    axes = drawing.axes
    longest = max([each.planned_seconds for each in costs] + [each.seconds for each in costs] + [1e-9])
    for label, colour, offset, values in (
        ("planned", SOFT, 0.2, [each.planned_seconds for each in costs]),
        ("actual", ACCENT, -0.2, [each.seconds for each in costs]),
    ):
        axes.barh(places + offset, values, height=0.36, color=colour, label=label)
        for place, value in zip(places, values, strict=True):
            text = duration(value) if value else "–"
            drawing.write(value + 0.01 * longest, place + offset, text, va="center")
    axes.set_yticks(places, [wrapped(each.name, 16) for each in costs])
    axes.set_xticks([])
    axes.set_xlim(0, 1.2 * longest)
    _bare(drawing)
    drawing.legend()
    return drawing


def packs_figure(packs: Sequence[PackSpan]) -> Drawing:
    """Trials in the pack against time, a colour for each stage."""
    long = packs[-1].ended >= 180
    unit, scale = ("minutes", 60.0) if long else ("seconds", 1.0)
    drawing = blank("packs", 240, quantity="trials in the pack")
    stages = dict(zip(dict.fromkeys(each.stage for each in packs), cycle(HUES), strict=False))
    for stage, colour in stages.items():
        own = [each for each in packs if each.stage == stage]
        wide = [(each.ended - each.began) / scale for each in own]
        starts = [each.began / scale for each in own]
        drawing.axes.bar(starts, [e.trials for e in own], width=wide, align="edge", color=colour, label=stage)
    drawing.axes.set_xlim(0, packs[-1].ended / scale)
    drawing.axes.set_xlabel(f"{unit} since the start")
    drawing.axes.yaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
    drawing.legend()
    return drawing


def truncation_figure(found: Truncation, trained: RankCurve) -> Drawing:
    """NLL against rank: cut from the largest adapter, and trained at that rank (`trained`, in NLL)."""
    drawing = blank("truncation", 320, quantity=NLL_AXIS)
    if trained.points:
        x, y = [p.rank for p in trained.points], [p.measured.value for p in trained.points]
        drawing.axes.plot(x, y, "o-", color=ACCENT, label="trained at that rank")
    for way, (label, colour, line, marker) in _CUTS.items():
        points = found.curve(way)
        if not points:
            continue
        drawing.axes.plot([p.rank for p in points], [p.nll for p in points], linestyle=line, marker=marker,
                          markersize=5, color=colour, label=label)  # fmt: skip
        for point in points:
            drawing.tip(point.rank, point.nll, f"{label}, rank {point.rank}: {point.nll:.4f}")
    drawing.axes.axhline(found.nll, color=SOFT, linestyle=":", label=f"the whole adapter (rank {found.r})")
    ranks = sorted({p.rank for p in found.points} | {p.rank for p in trained.points})
    drawing.ticks(ranks, [str(rank) for rank in ranks], title="rank")
    drawing.legend(columns=1)
    return drawing


def _measured(
    drawing: Drawing, x: Sequence[float], points: Sequence[Measured], *, scale: float = 1.0, label: str
) -> None:
    """A line with intervals."""
    values = np.array([scale * point.value for point in points])
    ends = np.array([point.interval or (point.value, point.value) for point in points]) * scale
    errors = np.abs(np.sort(ends, axis=1).T - values)
    style: dict[str, Any] = {"color": ACCENT, "linewidth": 2, "marker": "o", "markersize": 5, "capsize": 4}
    drawing.axes.errorbar(x, values, yerr=errors, elinewidth=1.2, label=label, **style)


def _recommended(drawing: Drawing, places: Sequence[tuple[float, float]]) -> None:
    """The recommended value stands out."""
    for x, y in places:
        drawing.axes.plot(
            [x], [y], "o", markersize=11, color=WARM, zorder=3, linestyle="", label="recommended"
        )


def _bare(drawing: Drawing) -> None:
    """Remove grid, spines and ticks' marks: the cells or bars speak."""
    drawing.axes.grid(visible=False)
    drawing.axes.spines[:].set_visible(False)
    drawing.axes.tick_params(length=0)


def _shade(value: float, best: float, worst: float) -> float:
    """Shade from .08 for the worst to .9 for the best."""
    share = (worst - min(value, worst)) / max(worst - best, 1e-12)
    return 0.08 + 0.82 * share * sqrt(share)


def _without_the_start(curves: Sequence[LearningCurve]) -> tuple[float, float]:
    """Range from the lowest value to what is high after the first fifth: the fall before it would flatten the rest."""
    late = [each for curve in curves for p in curve.points if p.fraction > 0.2 or p is curve.points[-1]
            for each in (p.validation_nll, *((p.train_nll,) if curve.final else ())) if np.isfinite(each)]  # fmt: skip
    low, high = min(late, default=0.0), max(late, default=1.0)
    room = 0.08 * max(high - low, 1e-3)
    return low - room, high + room


def _range(
    curve: RankCurve, beside: RankCurve | None, limit: float | None, scale: float
) -> tuple[float, float]:
    """Room for all points and the margin; intervals much wider than the points' own spread are cut off."""
    points = [point.measured for point in (*curve.points, *(beside.points if beside else ()))]
    values = [point.value for point in points] + ([] if limit is None else [limit])
    low, high = min(values), max(values)
    room = max(high - low, 1e-3)
    ends = [end for point in points if point.interval for end in point.interval]
    bottom, top = max(min([low, *ends]), low - room), min(max([high, *ends]), high + room)
    return scale * (bottom - 0.08 * room), scale * (top + 0.08 * room)


def _tip(point: RankPoint, scale: float) -> str:
    measured = point.measured
    over = f", 95 % over {measured.interval_over}" if measured.interval_over else ""
    return (
        f"rank {point.rank}, {count(point.parameters)} parameters, learning rate {rate(point.learning_rate)}, "
        f"{measured.seeds} seed{'s' if measured.seeds > 1 else ''}{over}: {scale * measured.value:.4g}"
    )
