"""MLflow: a run for the search, and one below it for each trial; `MLFLOW_TRACKING_URI` says where, as always."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from time import time
from typing import Any

from loratune.trackers.tracker import PROJECT, TrackedAnswer, TrackedRun, TrackedTrial, Value

_LONGEST = 500
"""Letters of a parameter that every store takes."""


class Mlflow:
    """A `Tracker`."""

    def __init__(self) -> None:
        self._client: Any = None
        self._experiment = self._run = ""
        self._status = "KILLED"

    def begin(self, run: TrackedRun) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient()
        found = self._client.get_experiment_by_name(PROJECT)
        self._experiment = found.experiment_id if found else self._client.create_experiment(PROJECT)
        self._run = self._client.create_run(self._experiment, run_name=run.name).info.run_id
        self._log(self._run, run.config, ())

    def trial(self, trial: TrackedTrial) -> None:
        began = _milliseconds(trial.began)
        created = self._client.create_run(
            self._experiment, start_time=began, tags={"mlflow.parentRunId": self._run}, run_name=trial.name
        )
        last = trial.curve[-1][0] if trial.curve else 0
        curve = ((name, value, step) for step, values in trial.curve for name, value in values.items())
        metrics = ((f"end/{name}", value, last) for name, value in trial.metrics.items())
        self._log(created.info.run_id, trial.parameters, (*curve, *metrics))
        status = "FINISHED" if trial.finished else "FAILED"
        self._client.set_terminated(created.info.run_id, status, _milliseconds(trial.ended))

    def answer(self, answer: TrackedAnswer) -> None:
        chosen = {f"recommended.{name}": value for name, value in answer.parameters.items()}
        self._log(self._run, chosen, ((name, value, 0) for name, value in answer.metrics.items()))
        for name, place in answer.files.items():
            self._client.set_tag(self._run, f"loratune.{name}", place)
        self._status = "FINISHED"

    def close(self) -> None:
        if self._run:
            self._client.set_terminated(self._run, self._status)

    def _log(
        self, run: str, parameters: Mapping[str, Value], metrics: Iterable[tuple[str, float, int]]
    ) -> None:
        from mlflow.entities import Metric, Param

        now = _milliseconds(0)
        self._client.log_batch(
            run,
            params=[Param(name, str(value)[:_LONGEST]) for name, value in parameters.items()],
            metrics=[Metric(name, value, now, step) for name, value, step in metrics],
        )


def _milliseconds(seconds: float) -> int:
    return int(1000 * (seconds or time()))
