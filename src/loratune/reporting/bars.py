"""Progress in a notebook: a bar for the stage at hand, by tqdm."""

from __future__ import annotations

import sys
from math import isfinite
from types import TracebackType
from typing import Any, Self

from loratune.values.events import Event, Finished, Note, PhaseBegan, Progress, StageBegan, TrialEnded


def in_notebook() -> bool:
    """Whether this is a Jupyter kernel."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in shell.config


class Bars:
    """Call it with every event. One bar for each phase, and for each stage one that is full when its trials ended."""

    def __init__(self, **options: Any) -> None:
        """`options` go to tqdm."""
        self._options = options
        self._bar: Any = None
        self._ended = 0
        self._best = float("inf")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case Note(text=text):
                self._write(text)
            case PhaseBegan(phase=phase):
                self._open(phase.value)
            case StageBegan(name=name, trials=trials):
                self._open(name, total=trials or None)
            case Progress(trials=trials):
                self._reach(self._ended + sum(trial.share for trial in trials))
            case TrialEnded(nll=nll):
                self._ended += 1
                self._reach(self._ended)
                self._best = min(self._best, nll)
                if self._bar is not None and isfinite(self._best):
                    self._bar.set_postfix_str(f"lowest validation NLL {self._best:.4f}")
            case Finished(directory=directory):
                self._close()
                self._write(f"Everything is in {directory}.")

    def _open(self, name: str, total: int | None = None) -> None:
        from tqdm.auto import tqdm  # takes a while to import, and needs a notebook to be worth it

        self._close()
        self._ended = 0
        form = (
            "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}"
            if total
            else "{desc} {elapsed}"
        )
        self._bar = tqdm(**{"desc": name, "total": total, "bar_format": form} | self._options)

    def _reach(self, trials: float) -> None:
        """So many of the stage's trials; a trial that enters a pack never takes the bar back."""
        if self._bar is not None and self._bar.total:
            self._bar.update(max(0.0, min(trials, self._bar.total) - self._bar.n))

    def _write(self, text: str) -> None:
        from tqdm.auto import tqdm

        tqdm.write(text, file=self._options.get("file"))

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
