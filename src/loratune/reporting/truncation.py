"""The truncation curve beside the trained ranks: its figure and its sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loratune.reporting.figures import ACCENT, MUTED, WARM, blank_figure, log_axis
from loratune.reporting.rank_curves import RankCurve
from loratune.values import Cut, Truncation

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_STYLES = {
    Cut.UNIFORM: ("cut, one rank for all layers", WARM, "solid", "circle"),
    Cut.THRESHOLD: ("cut, one threshold for all layers", WARM, "dot", "diamond"),
    Cut.HEALED: ("cut and trained on for a little", "#1c7f4b", "solid", "square"),
}


def truncation_figure(found: Truncation, trained: RankCurve) -> Figure:
    """NLL against rank: cut from the largest adapter, and trained at that rank (`trained`, in NLL)."""
    figure = blank_figure(height=340)
    if trained.points:
        figure.add_scatter(
            x=[point.rank for point in trained.points],
            y=[point.measured.value for point in trained.points],
            mode="lines+markers",
            line={"color": ACCENT, "width": 2},
            name="trained at that rank",
            hovertemplate="trained at rank %{x}: %{y:.4f}<extra></extra>",
        )
    for way, (name, colour, dash, symbol) in _STYLES.items():
        points = found.curve(way)
        if not points:
            continue
        figure.add_scatter(
            x=[point.rank for point in points],
            y=[point.nll for point in points],
            mode="lines+markers",
            line={"color": colour, "width": 2, "dash": dash},
            marker={"symbol": symbol, "size": 8},
            name=name,
            hovertemplate="cut to rank %{x}: %{y:.4f}<extra></extra>",
        )
    figure.add_hline(y=found.nll, line={"color": MUTED, "width": 1, "dash": "dot"})
    ranks = sorted({p.rank for p in found.points} | {p.rank for p in trained.points})
    log_axis(figure, ranks, "rank", [str(rank) for rank in ranks])
    figure.update_yaxes(title="validation NLL, nats per token")
    figure.update_layout(legend={"orientation": "h", "x": 0, "y": 1.18})
    return figure


def truncation_sentence(found: Truncation) -> str:
    """What the curve shows, and what it does not."""
    text = (
        f"The rank-{found.r} adapter can be cut to rank {found.deployable} without training on"
        if found.deployable < found.r
        else f"No cut of the rank-{found.r} adapter was shown to be as good as whole"
    )
    entropy = sorted(layer.entropy_rank for layer in found.layers)
    if entropy:
        text += (
            f"; by the entropy of their singular values its layers use {entropy[0]:.1f} to {entropy[-1]:.1f} "
            f"ranks (median {entropy[len(entropy) // 2]:.1f})"
        )
    return (
        f"{text}. On {found.rows} validation rows; dotted line: the whole adapter. "
        "Training at a rank is measured above and decides; cuts beyond 8-fold are pessimistic."
    )
