"""TensorBoard: event files in `tensorboard/` of the run directory, a folder for each trial."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loratune.trackers.tracker import TrackedAnswer, TrackedRun, TrackedTrial, Value

FOLDER = "tensorboard"


class TensorBoard:
    """A `Tracker`."""

    def __init__(self) -> None:
        self._folder = Path()
        self._writer: Any = None

    def begin(self, run: TrackedRun) -> None:
        self._folder = run.folder / FOLDER
        self._writer = _writer(self._folder / "run")
        self._writer.add_text("options", _table(run.config))

    def trial(self, trial: TrackedTrial) -> None:
        folder = self._folder / trial.name
        if folder.exists():
            return  # an earlier part of the run has written it
        writer = _writer(folder)
        for step, values in trial.curve:
            for name, value in values.items():
                writer.add_scalar(name, value, step, walltime=trial.ended or None)
        end = {f"end/{name}": value for name, value in trial.metrics.items()}
        writer.add_hparams(dict(trial.parameters), end, run_name=".")
        writer.close()

    def answer(self, answer: TrackedAnswer) -> None:
        self._writer.add_text("recommended", _table(answer.parameters))
        self._writer.add_text("files", _table(answer.files))
        for name, value in answer.metrics.items():
            self._writer.add_scalar(name, value, 0)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _writer(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))


def _table(values: Mapping[str, Value]) -> str:
    """Markdown, which TensorBoard shows; text from outside as code."""
    rows = [
        f"| {name} | `{str(value).replace('`', chr(39)).replace('|', '¦')}` |"
        for name, value in values.items()
    ]
    return "\n".join(["| | |", "|---|---|", *rows])
