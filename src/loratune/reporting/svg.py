"""Figures as inline SVG: matplotlib draws them, the page's CSS variables colour them, so they follow light and dark.

Text stays text, points have tooltips, and a title and a description stand in for those who cannot see.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from textwrap import wrap
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 400
"""Width in the drawing's own units: a page of 390 pixels shows it at nine tenths, with letters above 10 pixels."""
_LETTERS = 12
INK, SOFT, LINE, ACCENT, WARM, GOOD, PAPER = (f"#0{i}0{i}0{i}" for i in range(1, 8))
"""Stand-ins for the page's colours: no figure has these near-blacks for their own sake."""
_VARIABLES = dict(zip((INK, SOFT, LINE, ACCENT, WARM, GOOD, PAPER),
                      ("ink", "soft", "line", "accent", "warm", "good", "paper"), strict=True))  # fmt: skip
HUES = ("#3aa6a0", "#8b68c9", "#c2668f", "#b8975c", "#2f8fdf", "#5f9d3e", "#d0773a", "#8a93a3")
"""Colours of lines that stand side by side; each reads on light and on dark paper."""
_KINDS = {"legend_1": "legend", "patch_2": "axes"}
"""matplotlib's names of what others look for, as classes."""
_SVG, _LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",  # wider than most, so that what a browser takes instead has room
    "font.size": _LETTERS,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.titlesize": _LETTERS,
    "axes.titlecolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "axes.formatter.useoffset": False,
}


@dataclass(kw_only=True)
class Drawing:
    """One pair of axes; `svg` gives the markup."""

    name: str
    """Name of the figure on its page: letters only."""
    figure: Figure
    axes: Axes
    _tips: list[str] = field(default_factory=list)

    def tip(self, x: float, y: float, text: str) -> None:
        """The text shown where the mouse rests on a point."""
        self.axes.plot(
            [x], [y], "o", markersize=18, alpha=0.0, gid=f"tip{len(self._tips)}", scalex=False, scaley=False
        )
        self._tips.append(text)

    def ticks(self, values: Sequence[float], labels: Sequence[str], *, title: str) -> None:
        """A logarithmic x axis with a tick at each value that was measured; labels that would touch are left out."""
        self.axes.set_xscale("log")
        self.axes.set_xticks(list(values), _apart(self.axes, values, labels))
        self.axes.set_xticks([], minor=True)
        self.axes.set_xlabel(title)

    def legend(self, columns: int = 2) -> None:
        """Draw the legend above the axes, where it covers no data."""
        self.figure.legend(
            loc="outside upper left",
            ncols=columns,
            fontsize=_LETTERS,
            labelcolor=INK,
            frameon=False,
            handlelength=1.6,
            columnspacing=1.2,
        )

    def write(self, x: float, y: float, text: str, *, color: str = INK, **place: Any) -> None:
        """Text within the axes."""
        self.axes.text(x, y, text, color=color, fontsize=_LETTERS, **place)

    def svg(self, title: str, description: str = "") -> Markup:
        """The markup of the figure, everything from outside escaped."""
        from matplotlib import rc_context

        written = BytesIO()
        with rc_context({**_STYLE, "svg.hashsalt": self.name}):
            nothing: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}
            self._place()
            self.figure.savefig(written, format="svg", transparent=True, metadata=nothing)
        root = ElementTree.fromstring(written.getvalue())
        self._describe(root, title, description)
        for link in root.iter(f"{{{_SVG}}}use"):
            link.set("href", link.attrib.pop(f"{{{_LINK}}}href"))
        ElementTree.register_namespace("", _SVG)
        return Markup(_coloured(_own_names(ElementTree.tostring(root, encoding="unicode"), self.name)))

    def _place(self) -> None:
        """Lay out for the letters of SVG, once: `savefig` would draw all of it for that, and then again."""
        from matplotlib.backends.backend_svg import FigureCanvasSVG

        FigureCanvasSVG(self.figure)
        if (layout := self.figure.get_layout_engine()) is not None:
            layout.execute(self.figure)
            self.figure.set_layout_engine(None)

    def _describe(self, root: ElementTree.Element, title: str, description: str) -> None:
        for name in ("width", "height", "version"):
            root.attrib.pop(name, None)
        for element in root.findall(f"{{{_SVG}}}metadata"):
            root.remove(element)
        for definitions in root.findall(f"{{{_SVG}}}defs"):
            for style in definitions.findall(f"{{{_SVG}}}style"):
                definitions.remove(style)  # inline it would hold for the whole page
        for place, (kind, text) in enumerate((("title", title), ("desc", description))):
            described = ElementTree.Element(f"{{{_SVG}}}{kind}", {"id": kind})
            described.text = text
            root.insert(place, described)
        root.set("role", "img")
        root.set("aria-labelledby", "title desc")
        for element in root.iter(f"{{{_SVG}}}g"):
            if meaning := _KINDS.get(element.get("id", "")):
                element.set("class", meaning)
            number = re.fullmatch(r"tip(\d+)", element.get("id", ""))
            if number:
                described = ElementTree.Element(f"{{{_SVG}}}title")
                described.text = self._tips[int(number[1])]
                element.insert(0, described)


def blank(name: str, height: int, *, quantity: str = "") -> Drawing:
    """Axes of `WIDTH` x `height`; `quantity` is what the y axis shows, written above it."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72, layout="constrained")
        axes = figure.add_subplot()
        axes.tick_params(length=3)
        if quantity:
            axes.set_title(quantity, loc="left")
    return Drawing(name=name, figure=figure, axes=axes)


def wrapped(text: str, width: int) -> str:
    """The text on lines of `width` letters."""
    return "\n".join(wrap(text, width))


def _apart(axes: Axes, values: Sequence[float], labels: Sequence[str]) -> list[str]:
    """The labels, those empty that would touch the one before."""
    from math import log

    low, high = log(min(values)), log(max(values))
    room = (WIDTH - 70) / max(high - low, 1e-9)
    kept, free = [], float("-inf")
    for value, label in zip(values, labels, strict=True):
        wide = max(map(len, label.split("\n"))) * 0.62 * _LETTERS
        middle = (log(value) - low) * room
        fits = middle - wide / 2 >= free
        kept.append(label if fits else "")
        free = middle + wide / 2 + 4 if fits else free
    return kept


def _own_names(text: str, prefix: str) -> str:
    """Names of one figure that no other on the page has; those that nothing refers to are dropped."""
    used = set(re.findall(r"(?:url\(#|href=\"#)([\w-]+)", text)) | {"title", "desc"}
    text = re.sub(r' id="([\w.-]+)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r"(url\(#|href=\"#)([\w-]+)", rf"\g<1>{prefix}-\g<2>", text)
    return text.replace('aria-labelledby="title desc"', f'aria-labelledby="{prefix}-title {prefix}-desc"')


def _coloured(text: str) -> str:
    """The drawing with the page's variables and its letters."""
    for stand_in, name in _VARIABLES.items():
        text = text.replace(stand_in, f"var(--{name})")
    return re.sub(r"'DejaVu Sans'", "inherit", text)
