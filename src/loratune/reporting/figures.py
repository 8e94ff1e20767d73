"""Plotly figures from the report's tuples. Plotly, an optional extra, is imported when a figure is made."""

from __future__ import annotations

from collections.abc import Sequence
from math import log10
from typing import TYPE_CHECKING, Any

import numpy as np

from loratune.reporting.facts import RunFacts
from loratune.reporting.later_stages import AlphaPoint, BatchCell, StageCost
from loratune.reporting.rank_curves import GapPoint, LearningCurve, Measured, RankCurve, RankPoint
from loratune.reporting.wording import count, rate

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ACCENT, MUTED, WARM = "#2f6fdf", "#8a919c", "#d9622b"
_GRID = "rgba(138, 145, 156, 0.25)"
_TEXT = "#7b828d"
"""Grey that reads on light and on dark paper."""


def rank_figure(curve: RankCurve, facts: RunFacts, beside: RankCurve | None = None) -> Figure:
    """Quality against rank with intervals; `beside` is a second curve, drawn thin for comparison."""
    figure = blank_figure(height=340)
    scale = curve.metric.scale
    if beside is not None:
        figure.add_scatter(
            x=[point.rank for point in beside.points],
            y=[scale * point.measured.value for point in beside.points],
            mode="lines",
            line={"color": MUTED, "width": 1.5},
            name="own learning rate",
            hoverinfo="skip",
        )
    recommended = facts.decision.hyper_parameters.r
    figure.add_scatter(
        x=[point.rank for point in curve.points],
        y=[scale * point.measured.value for point in curve.points],
        error_y=_error_bars([point.measured for point in curve.points], scale),
        mode="lines+markers",
        line={"color": ACCENT, "width": 2},
        marker=_markers([point.rank == recommended for point in curve.points]),
        text=[_hover(point) for point in curve.points],
        hovertemplate="%{text}<br>%{y:.4g}<extra></extra>",
        name=f"learning rate {rate(curve.points[0].learning_rate)}",
        showlegend=beside is not None,
    )
    limit = None
    if beside is None and curve.metric.by_nll and facts.info(facts.metric).by_nll:
        limit = curve.points[-1].measured.value + facts.margin
        figure.add_hline(y=limit, line={"color": MUTED, "width": 1, "dash": "dot"})
        _note(figure, f"rank {curve.points[-1].rank} + margin", x=1, y=limit, xref="x domain", yshift=9)
    if curve.elbow is not None:
        figure.add_vline(x=curve.elbow, line={"color": MUTED, "width": 1, "dash": "dash"})
        # shapes take values on a logarithmic axis, annotations take their logarithms
        _note(figure, "elbow", x=log10(curve.elbow), y=1, yref="y domain", xanchor="left", xshift=4)
    ranks = [point.rank for point in curve.points]
    log_axis(figure, ranks, "rank", [str(rank) for rank in ranks])
    figure.update_yaxes(title=f"validation {curve.metric.axis}", range=_range(curve, beside, limit, scale))
    figure.update_layout(legend={"orientation": "h", "x": 0, "y": 1.14})
    return figure


def batch_figure(cells: Sequence[BatchCell], facts: RunFacts) -> Figure:
    """Heat map of learning rate x batch size: darker is better, the worst quarter alike (it would hide the rest)."""
    rates = sorted({cell.learning_rate for cell in cells})
    columns = list(dict.fromkeys(rate(value) for value in rates))
    rows = [str(size) for size in sorted({cell.batch_size for cell in cells})]
    found = {(str(cell.batch_size), rate(cell.learning_rate)): cell for cell in cells}
    ours = facts.decision.hyper_parameters
    chosen = (str(ours.batch_size), rate(ours.learning_rate))
    values, texts = [], []
    for row in rows:
        line = [found.get((row, column)) for column in columns]
        values.append([cell.nll if cell else None for cell in line])
        texts.append([_cell_text(cell, (row, c) == chosen) for cell, c in zip(line, columns, strict=True)])
    figure = blank_figure(height=130 + 56 * len(rows))
    figure.add_heatmap(
        x=columns,
        y=rows,
        z=values,
        text=texts,
        texttemplate="%{text}",
        colorscale=[[0.0, "#1f4fa8"], [0.5, "#7ba7e8"], [1.0, "#dfe9f8"]],
        zmax=float(np.quantile([cell.nll for cell in cells if cell.nll is not None] or [0.0], 0.75)),
        zmin=min((cell.nll for cell in cells if cell.nll is not None), default=0.0),
        showscale=False,
        xgap=3,
        ygap=3,
        hovertemplate="learning rate %{x}, batch size %{y}: %{z:.4f}<extra></extra>",
    )
    for cell in cells:
        if cell.nll is None:
            # by position: an annotation would read the category "1e-2" as a number
            place = columns.index(rate(cell.learning_rate)), rows.index(str(cell.batch_size))
            figure.add_annotation(x=place[0], y=place[1], text="diverged", showarrow=False)
    figure.update_xaxes(type="category", title="learning rate", showgrid=False)
    figure.update_yaxes(type="category", title="batch size", showgrid=False)
    return figure


def alpha_figure(points: Sequence[AlphaPoint], facts: RunFacts) -> Figure:
    """NLL against alpha."""
    figure = blank_figure(height=300)
    ours = facts.decision.hyper_parameters.lora_alpha
    figure.add_scatter(
        x=[point.lora_alpha for point in points],
        y=[point.measured.value for point in points],
        error_y=_error_bars([point.measured for point in points], 1.0),
        mode="lines+markers",
        line={"color": ACCENT, "width": 2},
        marker=_markers([point.lora_alpha == ours for point in points]),
        hovertemplate="alpha %{x}: %{y:.4f}<extra></extra>",
        showlegend=False,
    )
    log_axis(
        figure,
        [point.lora_alpha for point in points],
        "alpha",
        [f"{point.lora_alpha:g}<br>({point.multiple:g} r)" for point in points],
    )
    figure.update_yaxes(title="validation NLL, nats per token")
    return figure


def curves_figure(curves: Sequence[LearningCurve]) -> Figure:
    """Validation NLL during training, and the training NLL of the final trials (dotted)."""
    from plotly.colors import sample_colorscale

    figure = blank_figure(height=380)
    searched = [curve for curve in curves if not curve.final]
    shades = sample_colorscale(
        "Viridis", [0.1 + 0.75 * i / max(1, len(searched) - 1) for i in range(len(searched))]
    )
    colours = dict(zip((curve.label for curve in searched), shades, strict=True))
    colours["recommended"] = WARM
    for curve in curves:
        validation = [point.validation_nll for point in curve.points]
        lines = [(curve.label, "solid", validation)]
        if curve.final:
            training = [point.train_nll for point in curve.points]
            lines = [(f"{curve.label}, final", "solid", validation), ("… its training loss", "dot", training)]
        for name, dash, values in lines:
            figure.add_scatter(
                x=[100 * point.fraction for point in curve.points],
                y=values,
                name=name,
                mode="lines+markers" if dash == "solid" else "lines",
                marker={"size": 5},
                line={
                    "color": colours.get(curve.label, MUTED),
                    "width": 3 if curve.final else 2,
                    "dash": dash,
                },
                hovertemplate="%{x:.0f} %: %{y:.4f}",
            )
    figure.update_xaxes(title="share of its own steps, %")
    figure.update_yaxes(title="validation NLL, nats per token")
    figure.update_layout(legend={"x": 1.02, "y": 1})
    return figure


def gap_figure(points: Sequence[GapPoint]) -> Figure:
    """Training and validation NLL by rank, side by side."""
    figure = blank_figure(height=300)
    names = [str(point.rank) for point in points]
    for title, colour, values, texts in (
        ("training", MUTED, [point.train for point in points], None),
        ("validation", ACCENT, [point.validation for point in points], [f"{p.gap:+.4f}" for p in points]),
    ):
        figure.add_bar(
            x=names,
            y=values,
            name=title,
            text=texts,
            textposition="outside",
            cliponaxis=False,
            marker={"color": colour},
            hovertemplate="%{y:.4f}",
        )
    figure.update_xaxes(type="category", title="rank", showgrid=False)
    figure.update_yaxes(title="NLL, nats per token", rangemode="tozero")
    figure.update_layout(barmode="group", bargap=0.35, legend={"orientation": "h", "x": 0, "y": 1.12})
    return figure


def cost_figure(costs: Sequence[StageCost]) -> Figure:
    """Seconds by stage, planned and actual."""
    figure = blank_figure(height=120 + 44 * len(costs))
    names = [cost.name for cost in reversed(costs)]
    for title, colour, values in (
        ("planned", MUTED, [cost.planned_seconds for cost in reversed(costs)]),
        ("actual", ACCENT, [cost.seconds for cost in reversed(costs)]),
    ):
        figure.add_bar(
            x=values,
            y=names,
            name=title,
            orientation="h",
            marker={"color": colour},
            hovertemplate="%{x:.0f} s<extra></extra>",
        )
    figure.update_xaxes(title="seconds", rangemode="tozero")
    figure.update_yaxes(showgrid=False)
    figure.update_layout(
        barmode="group", bargap=0.35, legend={"orientation": "h", "x": 0, "y": 1.2, "traceorder": "reversed"}
    )
    return figure


def blank_figure(height: int) -> Figure:
    from plotly.graph_objects import Figure

    figure = Figure()
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 62, "r": 18, "t": 24, "b": 52},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13, "color": _TEXT},
        hoverlabel={"font": {"size": 13}},
    )
    axis = {
        "gridcolor": _GRID,
        "linecolor": _GRID,
        "zeroline": False,
        "automargin": True,
        "title": {"font": {"size": 13}},
    }
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    return figure


def log_axis(figure: Figure, values: Sequence[float], title: str, labels: Sequence[str]) -> None:
    """A logarithmic x axis with a tick at each value that was measured, and nowhere else."""
    figure.update_xaxes(
        type="log", tickmode="array", tickvals=list(values), ticktext=list(labels), title=title
    )


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


def _markers(chosen: Sequence[bool]) -> dict[str, Any]:
    """The recommended value stands out."""
    return {
        "size": [13 if each else 8 for each in chosen],
        "color": [WARM if each else ACCENT for each in chosen],
        "opacity": 1,
    }


def _note(figure: Figure, text: str, **place: Any) -> None:
    figure.add_annotation(text=text, showarrow=False, font={"size": 11}, **{"xanchor": "right", **place})


def _error_bars(points: Sequence[Measured], scale: float) -> dict[str, Any]:
    ends = [point.interval or (point.value, point.value) for point in points]
    return {
        "type": "data",
        "symmetric": False,
        "array": [scale * (high - point.value) for (_, high), point in zip(ends, points, strict=True)],
        "arrayminus": [scale * (point.value - low) for (low, _), point in zip(ends, points, strict=True)],
        "color": ACCENT,
        "thickness": 1.5,
        "width": 5,
    }


def _hover(point: RankPoint) -> str:
    measured = point.measured
    over = f", 95 % over {measured.interval_over}" if measured.interval_over else ""
    return (
        f"rank {point.rank}, {count(point.parameters)} parameters<br>learning rate "
        f"{rate(point.learning_rate)}, {measured.seeds} seed{'s' if measured.seeds > 1 else ''}{over}"
    )


def _cell_text(cell: BatchCell | None, chosen: bool) -> str:
    if cell is None or cell.nll is None:
        return ""
    return f"<b>{cell.nll:.4f} ✓</b>" if chosen else f"{cell.nll:.4f}"
