"""A console that shows text from outside (names, labels, claims about them) and never obeys it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.segment import Segment

from loratune.errors import printable


class Screen(Console):
    """rich's console with control characters of what is printed shown as escapes; styles are rich's own."""

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        """As `Console.render`; line breaks stay."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                text = "\n".join(map(printable, segment.text.split("\n")))
                yield Segment(text, segment.style)
