"""A console that shows text from outside (names, labels, claims about them) and never obeys it."""

from __future__ import annotations

from collections.abc import Iterable
from threading import RLock
from typing import Any, Self

from rich.console import Console
from rich.segment import Segment

from loratune.errors import printable


class Screen(Console):
    """rich's console with control characters of what is printed shown as escapes; styles are rich's own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.gate = RLock()
        """One print at a time, from what it finds on the screen to what it leaves there; a live view shares it."""

    def __enter__(self) -> Self:
        self.gate.acquire()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            super().__exit__(*error)
        finally:
            self.gate.release()

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        """`Console.render`, where line breaks stay."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                text = "\n".join(map(printable, segment.text.split("\n")))
                yield Segment(text, segment.style)
