"""Trackio: a local run for each trial, all in one group, and one for the answer; `TRACKIO_DIR` moves its database."""

from __future__ import annotations

import os
from collections.abc import Mapping

from loratune.trackers.tracker import PROJECT, TrackedAnswer, TrackedRun, TrackedTrial, Value


class Trackio:
    """A `Tracker`."""

    def __init__(self) -> None:
        self._run: TrackedRun | None = None

    def begin(self, run: TrackedRun) -> None:
        import trackio  # noqa: F401 -- that it can be had is known now, not after the first trial

        self._run = run

    def trial(self, trial: TrackedTrial) -> None:
        end = trial.curve[-1][0] if trial.curve else 0
        metrics = {f"end/{name}": value for name, value in trial.metrics.items()}
        self._log(trial.name, trial.parameters, (*trial.curve, (end, metrics)))

    def answer(self, answer: TrackedAnswer) -> None:
        self._log("recommended", {**answer.parameters, **answer.files}, ((0, answer.metrics),))

    def close(self) -> None:
        """Nothing: each of its runs has ended."""

    def _log(
        self,
        name: str,
        parameters: Mapping[str, Value],
        values: tuple[tuple[int, Mapping[str, float]], ...],
    ) -> None:
        import trackio

        assert self._run is not None
        trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=f"{self._run.name} {name}",
            group=self._run.name,
            config={**self._run.config, **parameters},
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        try:
            for step, each in values:
                trackio.log(dict(each), step=step)
        finally:
            trackio.finish()
