"""Weights & Biases: a run for each trial, all in one group, and one for the answer.

`WANDB_MODE` decides where to; unset and without a key it is offline, and `wandb sync` sends it later.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any

from loratune.trackers.tracker import PROJECT, TrackedAnswer, TrackedRun, TrackedTrial, Value


class WeightsAndBiases:
    """A `Tracker`."""

    def __init__(self) -> None:
        self._run: TrackedRun | None = None

    def begin(self, run: TrackedRun) -> None:
        import wandb  # noqa: F401 -- that it can be had is known now, not after the first trial

        self._run = run

    def trial(self, trial: TrackedTrial) -> None:
        run = self._open(trial.name, "trial", trial.parameters)
        for step, values in trial.curve:
            run.log(dict(values), step=step)
        run.summary.update(dict(trial.metrics))
        run.finish(exit_code=0 if trial.finished else 1)

    def answer(self, answer: TrackedAnswer) -> None:
        run = self._open("recommended", "answer", answer.parameters)
        run.summary.update({**answer.metrics, **answer.files})
        run.finish()

    def close(self) -> None:
        """Nothing: each of its runs has ended."""

    def _open(self, name: str, kind: str, parameters: Mapping[str, Value]) -> Any:
        import wandb

        assert self._run is not None
        quiet = wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            save_code=False,
            x_disable_stats=True,
            x_disable_meta=True,
        )
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=self._run.name,
            job_type=kind,
            name=name,
            config={**self._run.config, **parameters},
            dir=str(self._run.folder),
            mode=os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline"),
            reinit="create_new",
            settings=quiet,
        )


def _has_key() -> bool:
    """Whether it could log in without asking anybody."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return any("wandb" in host for host in netrc(os.environ.get("NETRC") or Path.home() / ".netrc").hosts)
    except (OSError, NetrcParseError):
        return False
