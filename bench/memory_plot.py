"""Predicted against measured memory as an SVG file, both axes logarithmic. Knows the rows of bench/memory.py."""

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil, floor, log2
from pathlib import Path

_SIZE, _MARGIN = 520, 64
_COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#a463f2")
_BAND = 0.08


def draw(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """One point per pack, a colour per architecture; the line is equality, the band 8 % about it."""
    points = [
        (
            row["shape"],
            float(row["measured_total"]) / 2**30,
            float(row["corrected_total"]) / 2**30,
            row["pack"],
        )
        for row in rows
        if row["survived"] == "True" and not row["pack"].startswith("calibrate")
    ]
    values = [value for _, x, y, _ in points for value in (x, y)]
    low, high = floor(log2(min(values))), ceil(log2(max(values)))
    inner = _SIZE - 2 * _MARGIN

    def at(value: float) -> float:
        return (log2(value) - low) / (high - low) * inner

    def place(x: float, y: float) -> tuple[float, float]:
        return _MARGIN + at(x), _SIZE - _MARGIN - at(y)

    shapes = list(dict.fromkeys(shape for shape, *_ in points))
    first, last = 2.0**low, 2.0**high
    band = [
        place(first, first * (1 + _BAND)), place(last, last * (1 + _BAND)),
        place(last, last * (1 - _BAND)), place(first, first * (1 - _BAND)),
    ]  # fmt: skip
    ends = (*place(first, first), *place(last, last))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_SIZE} {_SIZE}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{_SIZE}" height="{_SIZE}" fill="white"/>',
        f'<polygon points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in band)}" fill="#eeeeee"/>',
        '<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" stroke="#888888"/>'.format(*ends),
    ]
    for power in range(low, high + 1):
        x, y = place(2.0**power, 2.0**power)
        parts.append(
            f'<text x="{x:.1f}" y="{_SIZE - _MARGIN + 18}" text-anchor="middle">{2.0**power:g}</text>'
        )
        parts.append(f'<text x="{_MARGIN - 8}" y="{y + 4:.1f}" text-anchor="end">{2.0**power:g}</text>')
    for shape, x, y, name in points:
        cx, cy = place(x, y)
        colour = _COLOURS[shapes.index(shape) % len(_COLOURS)]
        told = escape(f"{shape}, {name}: {y:.2f} predicted, {x:.2f} measured")
        parts.append(
            f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="4" fill="{colour}" fill-opacity="0.7">'
            f"<title>{told}</title></circle>"
        )
    for i, shape in enumerate(shapes):
        y = _MARGIN + 16 * i
        parts.append(f'<circle cx="{_MARGIN + 8}" cy="{y}" r="4" fill="{_COLOURS[i % len(_COLOURS)]}"/>')
        parts.append(f'<text x="{_MARGIN + 18}" y="{y + 4}">{escape(shape)}</text>')
    parts.append(f'<text x="{_SIZE / 2}" y="{_SIZE - 20}" text-anchor="middle">measured peak, GiB</text>')
    turned = f'transform="rotate(-90 18 {_SIZE / 2})"'
    parts.append(
        f'<text x="18" y="{_SIZE / 2}" text-anchor="middle" {turned}>predicted, GiB; band 8 %</text>'
    )
    path.write_text("\n".join([*parts, "</svg>", ""]), encoding="utf-8")
