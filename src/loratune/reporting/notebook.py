"""A run in a notebook: progress bars by tqdm, and the answer as part of a page with everything from outside escaped."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from math import isfinite
from types import TracebackType
from typing import Any, Self

from markupsafe import Markup

from loratune.metrics import info_of
from loratune.reporting.wording import MARKS, NOTE, interval, number, state_of
from loratune.values import Evidence
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
        """Move the bar to `trials` of the stage's trials; a trial that enters a pack never takes it back."""
        if self._bar is not None and self._bar.total:
            self._bar.update(max(0.0, min(trials, self._bar.total) - self._bar.n))

    def _write(self, text: str) -> None:
        from tqdm.auto import tqdm

        tqdm.write(text, file=self._options.get("file"))

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


_CELL = Markup('<td style="text-align:left">{}</td>')


def picture(
    *,
    heading: str,
    verdict: Sequence[str],
    values: Mapping[str, Any],
    metrics: Mapping[str, Any],
    evidence: Sequence[Evidence],
    directory: str,
) -> Markup:
    """Verdict, values, scores and what was tested; `metrics` as in `result.json`."""
    parts = [Markup("<h4>{}</h4>").format(heading)]
    parts += [Markup("<p>{}</p>").format(each) for each in verdict]
    parts.append(_table(list(values), [[_cell(each) for each in values.values()]]))
    parts.append(_scores(metrics))
    parts.append(_claims(evidence))
    parts.append(Markup("<p>Everything: <code>{}/report.html</code></p>").format(directory))
    return Markup("").join([Markup("<div>"), *parts, Markup("</div>")])


def _scores(metrics: Mapping[str, Any]) -> Markup:
    """Scores on the test rows where there are any, else on validation."""
    split = "test" if metrics["test"] else "validation"
    models = {
        "base model": metrics["base_model"][split],
        "default recipe": metrics["default_recipe"][split],
        "recommended": metrics[split],
    }
    names = list(dict.fromkeys(name for scores in models.values() for name in scores))
    lines = [
        [model, *(info_of(name).text(scores.get(name)) for name in names)]
        for model, scores in models.items()
        if scores
    ]
    return _table([f"{split} rows", *(info_of(name).title for name in names)], lines)


def _claims(evidence: Sequence[Evidence]) -> Markup:
    with_states = [(state_of(each), each) for each in evidence]
    lines = [
        [
            f"{MARKS[state]} {state}",
            each.claim,
            f"{number(each.value, 3)} {interval(each.interval)}".strip(" –"),
        ]
        for state, each in with_states
        if state != NOTE
    ]
    return _table(["", "claim", "measured"], lines) if lines else Markup("")


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> Markup:
    head = Markup("").join(Markup('<th style="text-align:left">{}</th>').format(each) for each in heads)
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(Markup("").join(_CELL.format(each) for each in line)) for line in lines
    )
    return Markup("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(head, body)


def _cell(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
