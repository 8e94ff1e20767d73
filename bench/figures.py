"""Small multiples of lines over a logarithmic axis as an SVG file. Knows numbers and names, nothing of runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, isfinite, log10
from pathlib import Path

COLOURS = ("#4269d0", "#efb118", "#d1495b", "#3ca951", "#a463f2", "#6b6b6b", "#6cc5b0")
_WIDTH, _HEIGHT = 305, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 65, 10, 26, 34
_LEGEND = 20
"""Of a row of the legend."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """Points joined in their order; those that are not finite are left out."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    """Ends of a bar at each point, if there are any."""
    dashed: bool = False
    hollow: Sequence[bool] = ()
    """Points that are drawn as rings."""
    marked: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One diagram."""

    title: str
    lines: Sequence[Line]
    x_label: str
    y_label: str = ""
    log_y: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class _Axis:
    """From values to pixels."""

    low: float
    high: float
    start: float
    stop: float
    log: bool

    @classmethod
    def over(cls, values: Sequence[float], start: float, stop: float, *, log: bool) -> _Axis:
        places = [log10(value) if log else value for value in values]
        low, high = min(places), max(places)
        room = 0.06 * (high - low) or 0.5
        return cls(low=low - room, high=high + room, start=start, stop=stop, log=log)

    def at(self, value: float) -> float:
        place = log10(value) if self.log else value
        return self.start + (place - self.low) / (self.high - self.low) * (self.stop - self.start)

    def inside(self, value: float) -> bool:
        place = log10(value) if self.log else value
        return self.low <= place <= self.high

    def ticks(self) -> list[float]:
        if not self.log:
            step = 10 ** floor(log10((self.high - self.low) / 3))
            step *= next(k for k in (1, 2, 5, 10) if (self.high - self.low) / (k * step) <= 5)
            first = ceil(self.low / step)
            return [k * step for k in range(first, floor(self.high / step) + 1)]
        powers = range(floor(self.low), ceil(self.high) + 1)
        digits = (1,) if self.high - self.low > 2.5 else (1, 3) if self.high - self.low > 1 else (1, 2, 5)
        return [k * 10.0**p for p in powers for k in digits if self.inside(k * 10.0**p)]


def draw(path: Path, panels: Sequence[Panel], columns: int, *, x_ticks: Sequence[float] = ()) -> None:
    """Write the panels row by row, one legend above all; `x_ticks` replaces the ticks of the x axes."""
    rows = ceil(len(panels) / columns)
    width = columns * _WIDTH
    legend, above = _legend(panels, width)
    height = rows * _HEIGHT + above
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        *legend,
    ]
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        parts.append(f'<g transform="translate({column * _WIDTH} {row * _HEIGHT + above})">')
        parts += [*_panel(panel, x_ticks), "</g>"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*parts, "</svg>", ""]), encoding="utf-8")


def _legend(panels: Sequence[Panel], width: float) -> tuple[list[str], float]:
    """Names of all lines, in as many rows as they need, and the height of these."""
    lines = {line.name: line for panel in panels for line in panel.lines if line.name}
    parts, x, y = [], 14.0, 13.0
    for line in lines.values():
        room = 42 + 6.2 * len(line.name)
        if x > 14 and x + room > width:
            x, y = 14.0, y + _LEGEND
        parts.append(_stroke([(x, y), (x + 20, y)], line))
        if line.marked:
            parts.append(f'<circle cx="{x + 10}" cy="{y}" r="3" fill="{line.colour}"/>')
        parts.append(f'<text x="{x + 25}" y="{y + 4}">{escape(line.name)}</text>')
        x += room
    return parts, y + 13


def _stroke(points: Sequence[tuple[float, float]], line: Line) -> str:
    dash = ' stroke-dasharray="5 4"' if line.dashed else ""
    told = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{told}" fill="none" stroke="{line.colour}" stroke-width="1.6"{dash}/>'


def _panel(panel: Panel, x_ticks: Sequence[float]) -> list[str]:
    xs = [x for line in panel.lines for x in line.x]
    ys = [y for line in panel.lines for y in (*line.y, *line.low, *line.high) if isfinite(y)]
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    horizontal = _Axis.over(xs, _LEFT, right, log=True)
    vertical = _Axis.over(ys, bottom, _TOP, log=panel.log_y)
    parts = [
        f'<text x="{_LEFT}" y="{_TOP - 8}" font-weight="bold">{escape(panel.title)}</text>',
        f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 4}" text-anchor="middle">{escape(panel.x_label)}</text>',
        f'<text transform="translate(11 {(_TOP + bottom) / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(panel.y_label)}</text>",
    ]
    for tick in [t for t in x_ticks if horizontal.inside(t)] or horizontal.ticks():
        x = horizontal.at(tick)
        parts.append(f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}" stroke="#eeeeee"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{tick:g}</text>')
    for tick in vertical.ticks():
        y = vertical.at(tick)
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#eeeeee"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{round(tick, 10):g}</text>')
    parts.append(
        f'<rect x="{_LEFT}" y="{_TOP}" width="{right - _LEFT}" height="{bottom - _TOP}" fill="none" stroke="#999999"/>'
    )
    for line in panel.lines:
        parts += _line(line, horizontal, vertical)
    return parts


def _line(line: Line, horizontal: _Axis, vertical: _Axis) -> list[str]:
    kept = [i for i, y in enumerate(line.y) if isfinite(y) and vertical.inside(y)]
    points = [(horizontal.at(line.x[i]), vertical.at(line.y[i])) for i in kept]
    parts = [_stroke(points, line)] if len(points) > 1 else []
    for i, (x, y) in zip(kept, points, strict=True):
        if line.low:
            ends = (vertical.at(line.low[i]), vertical.at(line.high[i]))
            parts.append(
                f'<line x1="{x:.1f}" y1="{ends[0]:.1f}" x2="{x:.1f}" y2="{ends[1]:.1f}" stroke="{line.colour}"/>'
            )
        if line.marked:
            fill = "white" if line.hollow and line.hollow[i] else line.colour
            told = escape(f"{line.name}: {line.x[i]:g}, {line.y[i]:.4g}")
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{fill}" stroke="{line.colour}">'
                f"<title>{told}</title></circle>"
            )
    return parts
